"""What is wrong with a user's data: all of it counted, the first of it shown, in one error."""

import contextlib
from collections.abc import Iterator, Sequence

from qwen_jax.data.formats import Wrong

SHOWN = 20


class Faults:
    """Lines in the order of the data, each with its file, place and field."""

    def __init__(self, shown: Sequence[str] = (), count: int = 0):
        self.shown, self.count = list(shown), count

    def add(self, *lines: str) -> None:
        self.join(Faults(lines, len(lines)))

    @contextlib.contextmanager
    def blaming(self, where: str) -> Iterator[None]:
        """Add what reading or encoding the record at `where` raises in the meantime."""
        try:
            yield
        except (ValueError, RecursionError, OSError) as error:
            lines = error.lines if isinstance(error, Wrong) else (_line(error),)
            self.add(*(f"{where}: {line}" for line in lines))

    def join(self, other: "Faults") -> None:
        """Those of `other` come behind these."""
        self.shown = [*self.shown, *other.shown][:SHOWN]
        self.count += other.count

    def stop(self, undone: str) -> None:
        """Raise ValueError if there is any. undone: what they kept from being done, "trained"."""
        if self.count:
            noun = "fault" if self.count == 1 else "faults"
            more = self.count - len(self.shown)
            rest = [f"and {more} more"] if more else []
            found = f"{self.count} {noun} in the data, nothing was {undone}:"
            raise ValueError("\n  ".join([found, *self.shown, *rest]))


def _line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(error).split())
