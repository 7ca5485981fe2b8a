"""Values of a record, each of the kind that was wanted, or a fault that begins with its field."""

from collections.abc import Mapping
from typing import Any

from qwen_jax.files.problems import Wrong
from qwen_jax.files.strict_json import decode

KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def wanted(value: Any, kind: type, where: str, named: str) -> Any:
    if not isinstance(value, kind):
        prefix = f"{where}: " if where else ""
        raise Wrong(f"{prefix}got {KINDS[type(value)]}, wanted {named}")
    return value


def fields(value: Any, where: str, known: set[str]) -> dict[str, Any]:
    """The fields that are not null; one that is not known could change what is learnt."""
    given = present(wanted(value, dict, where, "an object"))
    if unknown := sorted(given.keys() - known):
        names = ", ".join(sorted(known))
        raise Wrong(*(f"{where}.{name}: unknown field, wanted {names}" for name in unknown))
    return given


def present(value: Mapping[str, Any]) -> dict[str, Any]:
    """Tables give every row every column: null says that it is not there."""
    return {name: part for name, part in value.items() if part is not None}


def choice(value: Any, known: Mapping[str, Any], where: str) -> str:
    if text(value, where) not in known:
        raise Wrong(f"{where}: got {value[:40]!r}, wanted one of {', '.join(known)}")
    return value


def text(value: Any, where: str) -> str:
    wanted(value, str, where, "text")
    if "\0" in value:
        raise Wrong(f"{where}: got a NUL character, wanted text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("ascii", "backslashreplace").decode()
        raise Wrong(f"{where}: got {half}, half of a character, wanted text") from None
    return value


def plain(value: Any, where: str) -> None:
    """Checks every text in JSON."""
    if isinstance(value, str):
        text(value, where)
    elif isinstance(value, list):
        for part in value:
            plain(part, where)
    elif isinstance(value, dict):
        for name, part in value.items():
            plain(name, where)
            plain(part, where)


def json_in(value: str, where: str) -> Any:
    try:
        return decode(value)
    except ValueError as error:
        raise Wrong(f"{where}: {error}") from None
