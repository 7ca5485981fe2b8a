"""Everything that is wrong with what a user gave, in one error."""

import contextlib
from collections.abc import Iterable, Iterator

SHOWN = 20


class Wrong(ValueError):
    """An error of several lines, each a problem of its own."""

    def __init__(self, *lines: str):
        super().__init__("; ".join(lines))
        self.lines = lines


class Problems:
    """Lines in the order in which they were found: all are counted, the first are kept."""

    def __init__(self, lines: Iterable[str] = (), count: int | None = None):
        found = list(lines)
        self.shown, self.count = found[:SHOWN], len(found) if count is None else count

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, *lines: str) -> None:
        self.join(Problems(lines))

    def join(self, other: "Problems") -> None:
        """Those of `other` come behind these."""
        self.shown = [*self.shown, *other.shown][:SHOWN]
        self.count += other.count

    @contextlib.contextmanager
    def catch(self, where: str = "") -> Iterator[None]:
        """Add what is raised in the meantime, in lines that begin with `where` it happened."""
        try:
            yield
        except (ValueError, OSError, RecursionError) as error:
            if not where:
                self.add(str(error))
            elif isinstance(error, Wrong):
                self.add(*(f"{where}: {line}" for line in error.lines))
            else:
                deep = isinstance(error, RecursionError)
                line = "nested too deeply" if deep else " ".join(str(error).split())
                self.add(f"{where}: {line}")

    def stop(self, title: str) -> None:
        """Raise ValueError if there is any. title: what they keep from being done."""
        if self:
            more = self.count - len(self.shown)
            rest = [f"and {more} more"] if more else []
            raise ValueError("\n  ".join([f"{title}:", *self.shown, *rest]))
