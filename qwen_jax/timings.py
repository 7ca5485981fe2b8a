"""Where the time goes between a command and its last word: what `--timings` shows."""

import time

import qwen_jax
from qwen_jax.decoding import executables


class Timings:
    """Laps of the wall clock, from the import of the package on."""

    def __init__(self) -> None:
        self._laps: list[tuple[str, float]] = []
        self._last = qwen_jax._BEGAN

    def lap(self, name: str) -> None:
        """What was done since the last call."""
        now = time.monotonic()
        self._laps.append((name, now - self._last))
        self._last = now

    def table(self) -> str:
        """A line for each lap and one for their sum; then what went on beside them."""
        total = sum(seconds for _, seconds in self._laps)
        lines = [f"{name:<28}{seconds:8.2f} s" for name, seconds in [*self._laps, ("all", total)]]
        beside = [f"{name} {seconds:.2f} s" for name, seconds in executables.spent().items()]
        return "\n".join([*lines, f"programs, meanwhile: {', '.join(beside) or 'none were kept'}"])
