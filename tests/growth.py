"""Whether work grows as fast as its input does, told by the CPU time of this process alone."""

import time
from collections.abc import Callable
from typing import Any


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
