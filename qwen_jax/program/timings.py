"""Where the time goes between a command and its last word: what `--timings` shows."""

import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Timings:
    """Laps of the wall clock, from `began` on by time.monotonic."""

    def __init__(self, began: float) -> None:
        self._laps: list[tuple[str, float]] = []
        self._last = began

    def lap(self, name: str) -> None:
        """What was done since the last call."""
        now = time.monotonic()
        self._laps.append((name, now - self._last))
        self._last = now

    def around(self, parts: Iterator[T], first: str, rest: str) -> Iterator[T]:
        """The parts as they come, and laps for the first and for the rest of them."""
        part = next(parts)
        self.lap(first)
        yield part
        yield from parts
        self.lap(rest)

    def table(self, beside: Mapping[str, float]) -> str:
        """A line for each lap and one for their sum; then what went on beside them, in seconds."""
        total = sum(seconds for _, seconds in self._laps)
        lines = [f"{name:<28}{seconds:8.2f} s" for name, seconds in [*self._laps, ("all", total)]]
        others = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in beside.items())
        return "\n".join([*lines, f"programs, meanwhile: {others or 'none were kept'}"])
