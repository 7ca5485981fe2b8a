"""How far a conversion is, and at the end what it did: bytes, seconds, speed."""

import time
from contextlib import ExitStack

from qwen_jax.files.sizes import size
from qwen_jax.program import progress


class Progress:
    """Shown inside `with`; the summary goes to stdout. total: bytes of all pieces."""

    def __init__(self, title: str, total: int, pieces: int):
        self.title, self.total, self.pieces = title, total, pieces
        self.bytes = self.skipped = 0
        self.start, self._shown = time.monotonic(), ExitStack()

    def __enter__(self) -> "Progress":
        self._task = self._shown.enter_context(progress.working(self.title, self.total, "B"))
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    def skip(self, count: int) -> None:
        """A piece of so many bytes was there already."""
        self.skipped += 1
        self._task.skip(count)

    def advance(self, count: int) -> None:
        self.bytes += count
        self._task.advance(count)

    def finish(self, note: str = "", written: int | None = None) -> None:
        """written: bytes on the disk, where they are counted; by default those of the pieces."""
        self._shown.close()
        seconds = time.monotonic() - self.start
        count = self.bytes if written is None else written
        resumed = f", after {self.skipped} of {self.pieces} pieces found done" * bool(self.skipped)
        speed = f"{size(count / max(seconds, 1e-9))}/s"
        print(f"{self.title}: {size(count)} in {seconds:.1f} s ({speed}){resumed}{note}")
