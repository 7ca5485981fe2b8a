"""TensorBoard and W&B: told of each step once, in one run however often it is called."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorboardX

from qwen_jax.program import arguments
from train.report.reporters import Reporters, problems


def test_what_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(problems(["none"])) == list(problems(["tensorboard"])) == []
    assert list(problems([])) == ["report names nobody; give none, tensorboard or wandb"]
    wanted = "report is none and tensorboard; give none alone, or leave it out"
    assert list(problems(["none", "tensorboard"])) == [wanted]
    monkeypatch.setattr(arguments, "installed", lambda package: False)
    assert list(problems(["wandb", "tensorboard"])) == [
        "report: tensorboard needs tensorboardX, which is not installed; "
        'pip install "qwen_jax[train]"',
        'report: wandb needs wandb, which is not installed; pip install "qwen_jax[wandb]"',
    ]


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it showed behind a checkpoint is dropped when the run goes on from there."""
    purged, writer = [], tensorboardX.SummaryWriter

    def note(folder: str, purge_step: int) -> Any:
        purged.append(purge_step)
        return writer(folder, purge_step=purge_step)

    monkeypatch.setattr(tensorboardX, "SummaryWriter", note)
    for done in (0, 2):
        with Reporters(("tensorboard",), tmp_path, done, {}) as told:
            told.tell(done + 1, {"held_out_perplexity": 2.0})
    assert purged == [1, 3]
    events = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    assert b"held_out_perplexity" in events
    assert [file.name for file in tmp_path.iterdir()] == ["tensorboard"]


class FakeRun:
    """Of a W&B that remembers what it was told."""

    def __init__(self, kept: dict[str, Any], **told: Any):
        kept.setdefault("begun", []).append(told)
        self.kept, self.step = kept, kept.get("next", 0)

    def log(self, values: dict[str, float], step: int) -> None:
        self.kept.setdefault("steps", []).append((step, values))
        self.kept["next"] = self.step = step + 1

    def finish(self, exit_code: int) -> None:
        self.kept.setdefault("ends", []).append(exit_code)


def fake(monkeypatch: pytest.MonkeyPatch, **more: Any) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    errors = SimpleNamespace(Error=RuntimeError)
    module = {"init": lambda **told: FakeRun(kept, **told), "errors": errors} | more
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**module))
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return kept


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at step 3 with a checkpoint of step 2, then called again; the second fails."""
    kept = fake(monkeypatch)
    with Reporters(("wandb",), tmp_path, 0, {"rank": 8}) as told:
        for step in (1, 2, 3):
            told.tell(step, {"loss": float(step)})
    again = Reporters(("wandb",), tmp_path, 2, {})
    again.tell(3, {"loss": 3.0})
    again.tell(4, {"loss": 4.0})
    again.__exit__(OSError, None, None)
    assert kept["steps"] == [(step, {"loss": float(step)}) for step in (1, 2, 3, 4)]
    assert kept["ends"] == [0, 1]
    first, second = kept["begun"]
    assert first["id"] == second["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert (first["resume"], first["dir"], first["config"]) == ("allow", tmp_path, {"rank": 8})
    assert (first["project"], first["name"]) == ("qwen_jax", tmp_path.name)


def test_wandb_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**told: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    fake(monkeypatch, init=refuse)
    wanted = "report: wandb says 'no API key configured'; log in with `wandb login`, keep"
    with pytest.raises(ValueError, match=wanted):
        Reporters(("wandb",), tmp_path, 0, {})
    (tmp_path / "wandb.json").write_text('{"id": "../../x"}')
    with pytest.raises(ValueError, match="damaged: it has no id; delete it, and a new W&B run"):
        Reporters(("wandb",), tmp_path, 0, {})


@pytest.mark.skipif(not arguments.installed("wandb"), reason="wandb is not installed")
def test_wandb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: both calls leave the same run's files."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for done in (0, 2):
        with Reporters(("wandb",), tmp_path, done, {"rank": 8}) as told:
            told.tell(done + 1, {"loss": 1.5})
            told.tell(done + 2, {"loss": 1.0})
    number = json.loads((tmp_path / "wandb.json").read_text())["id"]
    files = list(tmp_path.glob(f"wandb/offline-run-*/run-{number}.wandb"))
    assert len(files) == 2
    assert all(b"loss" in file.read_bytes() for file in files)
