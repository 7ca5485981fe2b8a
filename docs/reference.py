"""Docstrings for the reference: lines that begin with an argument's name become a list."""

import re
from typing import Any

import griffe

_ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): ", re.MULTILINE)


class Arguments(griffe.Extension):
    """Of functions and classes, whose docstrings name what they take."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """Each argument an item; what follows the last one at the margin is a paragraph again."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if _ARGUMENT.match(line):
            if not inside:
                lines.append("")
            line, inside = _ARGUMENT.sub(lambda found: f"- `{found[1]}`: ", line), True
        elif inside and line and not line.startswith(" "):
            lines.append("")
            inside = False
        lines.append(line)
    return "\n".join(lines)
