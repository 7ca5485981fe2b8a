import json
from pathlib import Path

import jax
import pytest

from qwen_jax import checkpoint, load
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.profile import measure
from qwen_jax.profile.__main__ import command
from qwen_jax.program import progress


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(checkpoint, "load", lambda folder, mesh, dtype: load(folder, one, dtype))
    told: list[str] = []
    monkeypatch.setattr(progress, "_write", told.append)
    monkeypatch.setattr(progress, "LINE_AFTER", 0.01)
    asked = ["demo", "--lengths", "24", "--batches", "1,2", "--output", str(tmp_path)]
    command([*asked, "--cache-dtypes", "int8"])
    assert any(line.startswith("measuring 24 tokens x 2: ") for line in told)
    report = json.loads((tmp_path / "profile.json").read_text())
    assert [(row["batch"], row["cache"]) for row in report["rows"]] == [(1, "int8"), (2, "int8")]
    assert all(row["tokens_per_second"] > 0 for row in report["rows"])
    assert all(row["peak_bytes"] > 1e7 for row in report["rows"])
    assert (tmp_path / "profile.png").stat().st_size > 5000
    assert "| 24 | 2 | int8 |" in capsys.readouterr().out


def test_published_figures_stand_beside_the_same_measurement() -> None:
    row = {"length": 2048, "batch": 1, "cache": "default"}
    found = measure.beside("Qwen-7B-Chat", "bfloat16", row)
    assert found["published_tokens_per_second"] == 40.93
    assert measure.beside("qwen-7b-chat", "int4", row)["published_gigabytes"] == 8.21
    assert measure.beside("qwen-7b-chat", "int4", row | {"batch": 4})["published_gigabytes"] is None
    row |= {"length": 1024, "batch": 16, "cache": "int8"}
    assert measure.beside("Qwen-7B-Chat", "bfloat16", row)["published_gigabytes"] == 22.3


@pytest.mark.parametrize("lengths", ["0", "many", "1,,2", "-5"])
def test_what_is_no_number(lengths: str) -> None:
    with pytest.raises(ValueError, match="--lengths is"):
        command(["demo", "--lengths", lengths])
