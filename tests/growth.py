"""Whether work grows as fast as its input does: this process's CPU time and memory tell."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def spent(work: Callable[[Any], Any], given: Any) -> float:
    """Seconds of this thread, the best of three."""

    def once() -> float:
        start = time.thread_time()
        work(given)
        return time.thread_time() - start

    return min(once() for _ in range(3))


def linear(work: Callable[[Any], Any], make: Callable[[int], Any], size: int) -> bool:
    """Whether 8 times the input takes far less than 64 times the time."""
    return spent(work, make(8 * size)) < 24 * spent(work, make(size)) + 0.01


_STATUS = Path("/proc/self/status")
only_linux = pytest.mark.skipif(not _STATUS.exists(), reason="only Linux says what it holds")


def held() -> int:
    """Bytes of memory that this process has for itself."""
    lines = _STATUS.read_text().splitlines()
    return 1024 * int(next(line for line in lines if "RssAnon" in line).split()[1])
