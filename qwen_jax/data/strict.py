"""JSON as its standard has it, from files of any origin; whatever is wrong is one line."""

import json
from typing import Any

DIGITS = 400  # more than any float has; Python's own limit is a setting of the machine


def decode(text: str | bytes) -> Any:
    """JSON as its standard has it. Raises ValueError that says what is wrong, in one line."""
    try:
        return _STRICT.decode(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
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
