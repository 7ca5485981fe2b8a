"""Programs that are made ahead are those that answers call."""

from pathlib import Path

import pytest

from qwen_jax import warm
from qwen_jax.checkpoint import load, save
from qwen_jax.decoding import executables
from qwen_jax.decoding.completion import complete
from qwen_jax.nn.sharding import make_mesh
from tests.convert.small import QWEN2, random_params

EIGHT_HEADS = QWEN2 | {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 64}


def test_answers_find_every_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "programs"
    monkeypatch.setenv(executables.FOLDER, str(kept))
    save(random_params(EIGHT_HEADS), tmp_path / "model")
    warm.main(str(tmp_path / "model"), prompt_tokens=40, max_new_tokens=8)
    made = set(kept.iterdir())
    assert f"{len(made)} programs made" in capsys.readouterr().out
    params = load(tmp_path / "model", make_mesh())
    for size in (1, 16, 17, 32, 33, 40):
        list(complete(params, [[3] * size], max_new_tokens=8))
        assert set(kept.iterdir()) == made, size
    warm.main(str(tmp_path / "model"), prompt_tokens=40, max_new_tokens=8)
    assert "0 programs made" in capsys.readouterr().out


def test_nowhere_to_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(executables.FOLDER, raising=False)
    with pytest.raises(ValueError, match="programs are not kept"):
        warm.main("demo")
