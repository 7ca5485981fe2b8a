"""JSON of any origin, read strictly: what the standard has, and no key passes unnoticed."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

DIGITS = 500  # more than any float has; Python's own limit is a setting of the machine
LARGEST = 256 << 20  # bytes of a file; a tokenizer's take about ten megabytes
_MISSING = object()


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises OSError, or ValueError for any other content."""
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path} has {size} bytes, expected JSON of at most {LARGEST}")
    try:
        content = decode(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def decode(text: str | bytes) -> Any:
    """JSON as its standard has it. Raises ValueError that says what it is instead, in one line."""
    try:
        return _STRICT.decode(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON: byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"not JSON: {twice[:40]!r} twice in an object")
    return made


def _number(text: str) -> float:
    if abs(value := float(text)) == float("inf"):
        raise ValueError(f"not JSON: the number {text[:40]} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"not JSON: a number of {len(text)} digits")
    return int(text)


def _constant(name: str) -> None:
    raise ValueError(f"not JSON: {name}")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_once, parse_float=_number, parse_int=_integer, parse_constant=_constant
)


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
