"""python -m train: mistakes are one line."""

from pathlib import Path

import pytest

from tests.processes import said
from tests.train.runs import command, finish, losses, signalled, small


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
