"""python -m train: killed and called again, it loses nothing; mistakes are one line."""

import random
from pathlib import Path

import pytest

from tests.processes import said
from tests.train.runs import command, finish, losses, small
from train.settings import TrainConfig

# The command, to which a signal comes while it makes a step, or before a checkpoint has its name.
SIGNALLED = """
import os, runpy, signal, sys
from orbax.checkpoint._src.path import atomicity
from train.step import Trainer
numbers, how, step = iter(range(1, 1000)), os.environ["HOW"], int(os.environ["STEP"])
make, name = Trainer.step, atomicity.AtomicRenameTemporaryPath.finalize
def signalled(self, state, batch):
    if next(numbers) == step and how in ("SIGTERM", "SIGINT"):
        os.kill(os.getpid(), getattr(signal, how))
    return make(self, state, batch)
async def killed(self, *arguments, **more):
    if how == "SIGKILL" and self.get_final().name == str(step):
        os.kill(os.getpid(), signal.SIGKILL)
    return await name(self, *arguments, **more)
Trainer.step, atomicity.AtomicRenameTemporaryPath.finalize = signalled, killed
sys.argv[0] = "train"
runpy.run_module("train", run_name="__main__")
"""


def signalled(settings: TrainConfig, how: str, step: int) -> tuple[int, str, str]:
    (end,) = finish(command(settings, start=("-c", SIGNALLED), HOW=how, STEP=str(step)))
    return end


def test_killed_and_called_again(tmp_path: Path) -> None:
    """SIGKILL in the middle of a save, then SIGTERM, then Ctrl-C, and the losses are the same."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = small(tmp_path / "whole", save_every=3)
    parts = small(tmp_path / "parts", save_every=3)
    code, _, err = signalled(parts, "SIGKILL", 6)
    assert code == -9, err
    folder = Path(parts.out) / "checkpoints"
    assert (folder / "3").is_dir()
    assert not (folder / "6").exists()
    assert any(path.name.startswith("6.") for path in folder.iterdir())
    done = 3
    for how in ("SIGTERM", "SIGINT"):
        more = random.randint(2, 6)  # after the first, which is given up
        code, _, err = signalled(parts, how, more)
        assert code == 0, err
        done += more
        wanted = f"stopped after step {done} of 20, and saved; the same command goes on from there"
        assert err.splitlines()[-1] == wanted
        assert (folder / str(done)).is_dir()
        assert len(losses(parts)) == done
    (code, _, err), (other, _, _) = finish(command(parts), command(whole))
    assert (code, other) == (0, 0), err
    assert f"going on after step {done} of 20 steps" in err
    assert losses(parts) == losses(whole)
    assert len(losses(parts)) == 20
    saved = [Path(s.out) / "adapter" / "adapter_model.safetensors" for s in (parts, whole)]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_mistakes(tmp_path: Path) -> None:
    settings = small(tmp_path, batch_size=0, steps=-1)
    unknown = command(small(tmp_path), start=("-m", "train", "--rang", "8"))
    (code, out, err), (other, _, message) = finish(command(settings, devices=2), unknown)
    assert (code, out) == (1, "")
    assert said(err) == (
        "error: these settings cannot be used:\n"
        "  steps is -1; the least is 1\n"
        "  batch_size is 0; the least is 1\n"
    )
    assert other == 2
    assert "--rang, 8" in message
    assert "--rank" in message  # perhaps you meant
    assert not (tmp_path / "out").exists()


def test_too_many_failures_is_one_message(tmp_path: Path) -> None:
    settings = small(tmp_path, learning_rate=1e30, max_failures=2)
    ((code, _, err),) = finish(command(settings))
    assert code == 1
    assert "\nerror: 2 steps in a row had no finite gradient" in err
    assert "Traceback" not in err


@pytest.mark.timeout(600)
def test_ctrl_c_in_the_first_step_ends_at_once(tmp_path: Path) -> None:
    settings = small(tmp_path)
    code, _, err = signalled(settings, "SIGINT", 1)
    assert (code, said(err).splitlines()[-1]) == (130, "interrupted")
    assert losses(settings) == []
