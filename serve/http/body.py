"""Bodies as JSON, read in bounded time and memory whatever they hold."""

import json
import math
import re
from itertools import accumulate
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serve.http.errors import ApiError, invalid, shown

Fields = TypeVar("Fields", bound=BaseModel)

MAX_VALUES = 2**18  # numbers, strings and the like: 262,144 ids
MAX_STRINGS = 2**17  # of them, names included
MAX_CONTAINERS = 2**16  # lists and objects
MAX_DEPTH = 100  # of lists and objects in one another
MAX_DIGITS = 40  # characters of a number

_NUMBER = re.compile(rb"[-+.0-9eE]{%d}" % (MAX_DIGITS + 1))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes(set(range(256)) - _STEPS.keys())


def parse(kind: type[Fields], content: bytes) -> Fields:
    """Raises a 400 for what is no such object in JSON."""
    try:
        return kind.model_validate(value(content))
    except ValidationError as error:
        raise invalid(error) from None


def value(content: bytes) -> Any:
    """What a body says; raises a 400 for what is no JSON, or more of it than any request needs.

    Two equal names in an object, numbers that are none and half characters are refused too: readers
    of JSON disagree on them.
    """
    try:
        measure(content)
        found = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_float=_float,
            parse_constant=_float,
        )
        if rb"\ud" in content.lower():  # half of a character cannot be written again
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeError:
        raise ApiError(400, "the body is not JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body cannot be read as JSON: {error}") from None


def measure(content: bytes) -> None:
    """Raises ValueError past a limit. Text that is no JSON is measured up to its first fault."""
    bare = content.replace(rb"\\", b"").replace(rb"\"", b"")
    _limit("strings", bare.count(b'"') // 2, MAX_STRINGS)
    outside = b"".join(bare.split(b'"')[::2])
    _limit("lists and objects", outside.count(b"[") + outside.count(b"{"), MAX_CONTAINERS)
    _limit("values", outside.count(b",") + 1, MAX_VALUES)
    depths = accumulate(map(_STEPS.__getitem__, outside.translate(None, _NO_BRACKETS)))
    _limit("lists and objects in one another", max(depths, default=0), MAX_DEPTH)
    if _NUMBER.search(outside):
        raise ValueError(f"a number has more than {MAX_DIGITS} characters")


def _limit(what: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"it has {count} {what}, at most {most} are taken")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} stands twice in one object")
    return made


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number in JSON")
    return number
