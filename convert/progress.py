"""How far a conversion is, and at the end what it did: bytes, seconds, speed."""

import sys
import time

from qwen_jax.files.atomic import gigabytes


class Progress:
    """One line on a terminal's stderr that is overwritten; the summary goes to stdout."""

    def __init__(self, title: str, pieces: int):
        self.title, self.pieces = title, pieces
        self.done = self.skipped = self.bytes = 0
        self.start = time.monotonic()

    def skip(self) -> None:
        """A piece was there already."""
        self.done += 1
        self.skipped += 1

    def advance(self, size: int) -> None:
        self.done += 1
        self.bytes += size
        if sys.stderr.isatty():
            bar = ("#" * (20 * self.done // self.pieces)).ljust(20)
            line = f"\r{self.title} [{bar}] {self.done}/{self.pieces} {gigabytes(self.bytes)} "
            print(line, end="", file=sys.stderr, flush=True)

    def finish(self, note: str = "") -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)
        seconds = time.monotonic() - self.start
        resumed = f", after {self.skipped} of {self.pieces} pieces found done" * bool(self.skipped)
        speed = f"{self.bytes / 1e9 / max(seconds, 1e-9):.2f} GB/s"
        print(f"{self.title}: {gigabytes(self.bytes)} in {seconds:.1f} s ({speed}){resumed}{note}")
