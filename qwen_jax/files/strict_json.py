"""Strict reading of the JSON files of a checkpoint: every key is used, harmless, or an error."""

from collections.abc import Collection, Mapping
from typing import Any

_MISSING = object()
SHOWN = 20  # problems


class StrictObject:
    """Takes keys out of a JSON object; remembers what was wrong and what nobody took."""

    def __init__(self, file: str, content: Mapping[str, Any]):
        self.file = file
        self.left = dict(content)
        self.problems: list[str] = []

    def take(self, *names: str, default: Any = _MISSING) -> Any:
        """The value under one of several spellings; they must agree if more than one is there."""
        taken = {name: self.left.pop(name) for name in names if name in self.left}
        found = {name: value for name, value in taken.items() if value is not None}
        values = list(found.values())
        if any(value != values[0] for value in values):
            self.problems.append(f"keys that mean the same differ: {found}")
        if values:
            return values[0]
        if default is _MISSING:
            state = "null" if taken else "missing"
            self.problems.append(f"key {' or '.join(map(repr, names))} is {state}")
            return None
        return default

    def size(self, *names: str, default: Any = _MISSING) -> int:
        value = self.take(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            if value is not None:
                self.problems.append(f"{names[0]} is {value!r}, expected a whole number above 0")
            return 1
        return value

    def number(self, *names: str, default: Any = _MISSING) -> float:
        value = self.take(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            if value is not None:
                self.problems.append(f"{names[0]} is {value!r}, expected a number above 0")
            return 1.0
        return float(value)

    def flag(self, *names: str, default: Any = _MISSING) -> bool:
        value = self.take(*names, default=default)
        if not isinstance(value, bool):
            if value is not None:
                self.problems.append(f"{names[0]} is {value!r}, expected true or false")
            return False
        return value

    def require(self, name: str, *allowed: Any) -> None:
        """A key that may be absent; any value not allowed asks for something we do not do."""
        value = self.left.pop(name, allowed[0])
        if value not in allowed:
            self.problems.append(f"{name} is {value!r}; only {allowed[0]!r} is supported")

    def divide(self, what: str, size: int, parts: int) -> int:
        if size % parts:
            self.problems.append(f"{what} {size} does not divide by {parts}")
        return size // parts

    def finish(self, harmless: Collection[str]) -> None:
        """Raise ValueError with everything that was wrong, unknown keys included."""
        unknown = sorted(set(self.left) - set(harmless))
        if unknown:
            self.problems.append(
                f"unknown keys {unknown}: they may change results, so none is skipped"
            )
        if self.problems:
            raise ValueError(f"{self.file} cannot be read: " + "; ".join(self.problems))


def report(title: str, problems: list[str]) -> None:
    """Raise ValueError with the problems, if there are any."""
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ValueError("\n  ".join([f"{title}:", *problems[:SHOWN], *more]))
