"""What the two ways of calling functions have in common."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve.guard import SPACING


@dataclass
class Delta:
    """What a message gained: visible text, or a part of a function call."""

    content: str = ""
    call: int | None = None  # which call the rest is about
    name: str = ""  # once, with the first part of a call
    arguments: str = ""


class Parser(Protocol):
    """Text in as it is generated, parts of a message out."""

    called: bool

    def push(self, text: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


class Plain:
    """No functions: all is content."""

    called = False

    def push(self, text: str) -> list[Delta]:
        return [Delta(text)] if text else []

    def finish(self) -> list[Delta]:
        return []


@dataclass(frozen=True)
class Forced:
    """The beginning of an answer that has to be a call, and a Lark grammar for the rest."""

    opening: str
    grammar: str


@dataclass
class Message:
    """A message put together from its deltas."""

    content: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)  # name, arguments

    def add(self, delta: Delta) -> None:
        self.content += delta.content
        if delta.call is not None:
            if delta.call == len(self.calls):
                self.calls.append({"name": delta.name, "arguments": ""})
            self.calls[delta.call]["arguments"] += delta.arguments


def new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def held_back(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end of text may be the beginning of a marker."""
    for length in range(min(len(text), max(map(len, markers)) - 1), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0


def alternatives(functions: Sequence[Mapping[str, Any]], before: str, after: str) -> str:
    """A Lark grammar of one call: `before` with the name in it, arguments of its schema, `after`.

    functions: name and parameters.
    """
    lines = ["start: " + " | ".join(f"call{n}" for n in range(len(functions)))]
    for n, function in enumerate(functions):
        opening = json.dumps(before.replace("NAME", function["name"]), ensure_ascii=False)
        ending = f" {json.dumps(after)}" if after else ""
        schema = function.get("parameters")
        schema = schema if isinstance(schema, dict) and schema else {"type": "object"}
        schema = {**schema, "x-guidance": SPACING}
        lines.append(f"call{n}: {opening} arguments{n}{ending}")
        lines.append(f"arguments{n}: %json {json.dumps(schema)}")
    return "\n".join(lines)
