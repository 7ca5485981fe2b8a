"""What the tests of a dialect's fields need to know of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

Places = Mapping[str, tuple[str, str, Any]]  # field -> which body, where in it, what is put there


@dataclass(frozen=True)
class Table:
    """Every field that a file of serve.schemas declares is in one of its parts."""

    file: str
    bases: Mapping[str, tuple[str, dict[str, Any]]]  # name -> path and body
    used: Places  # the server has to do otherwise
    fixed: Places  # another value is refused by the name of the field, or of what it is in
    labels: Places  # they ask for nothing
    # base -> places, names of labels there, names and values that ask for nothing
    unasked: Mapping[str, tuple[tuple[str, ...], Collection[str], Mapping[str, Any]]]
    elsewhere: frozenset[str] | set[str] = frozenset()  # tested by other files
    prefix: str = ""  # where its sampling fields are
    refused: frozenset[str] | set[str] = frozenset()  # whose new value may be
    renamed: frozenset[str] | set[str] = frozenset()  # sampling fields of other names, or one value
    beside: tuple[str, ...] = ()  # other files of the same requests
