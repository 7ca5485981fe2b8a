"""JSON of any origin, read strictly: what the standard has, of the kinds that are wanted.

Every file that others write is read through `StrictObject`: a value is of a named Kind or a line in
an error, an absent key has its default, and no key passes unnoticed.
"""

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

DIGITS = 500  # more than any float has; Python's own limit is a setting of the machine
LARGEST = 256 << 20  # bytes of a file; a tokenizer's take about ten megabytes
LARGEST_SIZE = 2**31 - 1  # of what is counted: tokens, rows, layers
_MISSING: Any = object()

T = TypeVar("T")
Held = TypeVar("Held", covariant=True)
D = TypeVar("D")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def shown(value: Any) -> str:
    """A value as an error shows it, however long or deep it is."""
    return _short.repr(value)


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises OSError, or ValueError for any other content."""
    raw = read_bytes(path)
    try:
        content = decode(raw)
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def read_bytes(path: Path) -> bytes:
    """All of a file that others wrote. Raises OSError, or ValueError if it is too long."""
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path} has {size} bytes, expected at most {LARGEST}")
    return path.read_bytes()


def read_text(path: Path) -> str:
    """The same as text. Raises ValueError if it is none."""
    try:
        return read_bytes(path).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text: byte {error.start} is not UTF-8; download it again"
        ) from None


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


# --- kinds ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Kind(Generic[Held]):
    """What a value must be.

    words: how an error says it. stand_in: one of the kind, to read on with. items: of which kind
    those of a list or table must be.
    """

    words: str
    holds: Callable[[Any], bool]
    stand_in: Held
    items: "Kind[Any] | None" = None

    def fault(self, name: str, value: Any) -> tuple[str, Any, str]:
        """Of a value that does not hold: the name of the part that is wrong, it, and the words."""
        parts: Any = ()
        if isinstance(value, list | dict):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            if self.items is not None and not self.items.holds(part):
                return self.items.fault(f"{name}[{str(key)[:60]}]", part)
        return name, value, self.words


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(least: int, most: int = LARGEST_SIZE) -> Kind[int]:
    words = f"a whole number from {least}" + ("" if most == LARGEST_SIZE else f" to {most}")
    holds = lambda value: type(value) is int and least <= value <= most
    return Kind("a whole number above 0" if words.endswith("from 1") else words, holds, least)


def listed(kind: Kind[T]) -> Kind[list[T]]:
    holds = lambda value: isinstance(value, list) and all(map(kind.holds, value))
    return Kind(f"a list, each {kind.words}", holds, [], kind)


def tabled(kind: Kind[T]) -> Kind[dict[str, T]]:
    holds = lambda value: isinstance(value, dict) and all(map(kind.holds, value.values()))
    return Kind(f"an object, each value {kind.words}", holds, {}, kind)


def either(one: Kind[Any], other: Kind[Any]) -> Kind[Any]:
    holds = lambda value: one.holds(value) or other.holds(value)
    return Kind(f"{one.words}, or {other.words}", holds, one.stand_in)


def choice(*allowed: str) -> Kind[str]:
    words = " or ".join(map(repr, allowed))
    return Kind(words, lambda value: isinstance(value, str) and value in allowed, allowed[0])


SIZE = whole(1)
COUNT = whole(0)
POSITIVE = Kind[float]("a number above 0", lambda v: _is_number(v) and 0 < v < 1e30, 1.0)
FRACTION = Kind[float]("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1, 1.0)
NAME = Kind[str]("a text that is not empty", lambda v: isinstance(v, str) and v != "", "?")
FLAG = Kind[bool]("true or false", lambda value: isinstance(value, bool), False)
TEXT = Kind[str]("a text", lambda value: isinstance(value, str), "")
OBJECT = Kind[dict[str, Any]]("an object", lambda value: isinstance(value, dict), {})
ANYTHING = Kind[Any]("anything", lambda value: True, None)


# --- objects ----------------------------------------------------------------------------------
class StrictObject:
    """Takes keys out of a JSON object; remembers what was wrong and what nobody took.

    An object inside has its own, made by `inside` or `each`: problems are the whole file's, and
    name the key by its path in it.
    """

    def __init__(self, file: str, content: Any):
        self.file, self.path = file, ""
        self.problems: list[str] = []
        self._fill(content)

    @staticmethod
    def of(path: Path) -> "StrictObject":
        """The object in a file that others wrote; an empty one where there is no file."""
        if not path.is_file():
            return StrictObject(str(path), {})
        try:
            return StrictObject(str(path), read(path))
        except ValueError as error:
            raise ValueError(f"{error}; download it again") from None

    def _fill(self, content: Any) -> None:
        if not isinstance(content, Mapping):
            self.problems.append(f"{self.path or 'it'} is {shown(content)}, expected an object")
            content = {}
        self.left = dict(content)

    @overload
    def take(self, kind: Kind[T], *names: str) -> T: ...
    @overload
    def take(self, kind: Kind[T], *names: str, default: D) -> T | D: ...
    def take(self, kind: Kind[Any], *names: str, default: Any = _MISSING) -> Any:
        """The value under one of several spellings, of that kind; null is like an absent key.

        They must agree if more than one is there. Where it is wrong, a problem is noted and the
        kind's stand-in comes back; where it is absent, the default, which need not be of the kind.
        """
        taken = {name: self.left.pop(name) for name in names if name in self.left}
        found = {name: value for name, value in taken.items() if value is not None}
        if not found:
            if default is not _MISSING:
                return default
            state = "null" if taken else "missing"
            keys = " or ".join(repr(self.path + name) for name in names)
            self.problems.append(f"key {keys} is {state}, expected {kind.words}")
            return kind.stand_in
        for name, value in found.items():
            if not kind.holds(value):
                self.wrong(*kind.fault(name, value))
                return kind.stand_in
        name, value = next(iter(found.items()))
        if any(other != value for other in found.values()):
            self.problems.append(f"keys that mean the same differ: {shown(found)}")
        return value

    def wrong(self, name: str, value: Any, wanted: str) -> None:
        """Note a problem with the value of a key."""
        self.problems.append(f"{self.path}{name} is {shown(value)}, expected {wanted}")

    def require(self, name: str, *allowed: Any) -> None:
        """A key that may be absent or null; any value not allowed asks for what we do not do."""
        value = self.left.pop(name, None)
        if value is not None and not any(_same(value, one) for one in allowed):
            self.problems.append(
                f"{self.path}{name} is {shown(value)}; only {allowed[0]!r} is supported"
            )

    def inside(self, *names: str) -> "StrictObject":
        """An object under one of several spellings; an empty one where there is none."""
        name = next((name for name in names if self.left.get(name) is not None), names[0])
        return self._child(self.take(OBJECT, *names, default={}), f"{name}.")

    def each(self, name: str) -> Iterator[tuple[str, "StrictObject"]]:
        """The objects of a list, or of a table, by number or name; there may be none."""
        found: Any = self.take(either(listed(OBJECT), tabled(OBJECT)), name, default=[])
        pairs = found.items() if isinstance(found, dict) else enumerate(found)
        for key, content in pairs:
            yield str(key), self._child(content, f"{name}[{key}].")

    def _child(self, content: dict[str, Any], path: str) -> "StrictObject":
        made = StrictObject(self.file, content)
        made.path, made.problems = self.path + path, self.problems
        return made

    def divide(self, what: str, size: int, parts: int) -> int:
        if size % parts:
            self.problems.append(f"{self.path}{what} {size} does not divide by {parts}")
        return max(1, size // parts)

    def leave(self, harmless: Collection[str] = ()) -> None:
        """Note the keys that nobody took, but for the harmless and those that ask for nothing."""
        unknown = sorted(
            key for key, value in self.left.items() if key not in harmless and not is_off(value)
        )
        if unknown:
            where = f" in {self.path.rstrip('.')}" if self.path else ""
            self.problems.append(
                f"unknown keys {unknown}{where}: they may change results, so none is skipped"
            )

    def finish(self, harmless: Collection[str] = ()) -> None:
        """Raise ValueError with everything that was wrong, unknown keys included."""
        self.leave(harmless)
        self.stop()

    def stop(self) -> None:
        """Raise ValueError with everything that was wrong so far."""
        if self.problems:
            raise ValueError(f"{self.file} cannot be read: " + "; ".join(self.problems))


def is_off(value: Any) -> bool:
    """Whether a switch asks for nothing, whatever it is: null or false."""
    return value is None or value is False


def _same(value: Any, other: Any) -> bool:
    """Equal, and a number is no truth value."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
