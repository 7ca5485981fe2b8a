"""What is shown of what takes time."""

import threading
import time

import pytest

from qwen_jax.program import progress


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written, as if a program had begun; nothing is too short to tell."""
    found: list[str] = []
    monkeypatch.setattr(progress, "_write", found.append)
    monkeypatch.setattr(progress, "LINE_AFTER", 0.01)
    return found


def wait_for(lines: list[str]) -> str:
    while not lines:
        time.sleep(0.01)
    return lines[-1]


def test_a_line_has_how_far_how_fast_and_how_long(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    task = progress.Task("loading", 8e9, "B")
    now[0] = 5.0
    assert task.words() == ["0 B of 8 GB", "0:05"]
    task.advance(2e9)
    assert task.words() == ["2 GB of 8 GB", "400 MB/s", "0:15 left"]
    task.skip(4e9)  # says nothing of the speed
    assert task.words() == ["6 GB of 8 GB", "400 MB/s", "0:05 left"]
    counted = progress.Task("reading", 4000, "tokens")
    now[0] = 7.0
    counted.advance(1000)
    assert counted.words() == ["1,000 of 4,000 tokens", "500 tokens/s", "0:06 left"]
    assert progress.Task("starting", None, "").words() == ["0:00"]


def test_what_takes_long_is_told(lines: list[str]) -> None:
    with progress.working("reading", 10, "tokens"):
        progress.advance(4)  # of what the innermost is at
        assert wait_for(lines).startswith("reading: 4 of 10 tokens, ")
    lines.clear()
    time.sleep(0.05)
    assert not lines


def test_a_library_call_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with progress.working("loading"):
        assert threading.active_count() == before
    progress.advance(1)
    assert capsys.readouterr() == ("", "")


def test_clock() -> None:
    assert [progress.clock(s) for s in (5.4, 65, 3723)] == ["0:05", "1:05", "1:02:03"]
