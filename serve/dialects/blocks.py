"""An answer as blocks, one after another: thoughts, texts and calls, as newer dialects have it."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from serve.text.calls import new_id
from serve.text.message import Message

Kind = Literal["thought", "text", "call"]
Step = Literal["begun", "gained", "ended"]


@dataclass
class Block:
    """One of them; what a call gains is its arguments."""

    kind: Kind
    place: int
    name: str = ""  # of the function that is called
    pieces: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: secrets.token_hex(24))
    call_id: str = field(default_factory=new_id)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Blocks:
    """Takes in what an answer gains, gives each step of its blocks: begun, gained what, ended."""

    def __init__(self) -> None:
        self.open: Block | None = None
        self.count = 0
        self._call = -1  # the number of the call that is open

    def push(self, gained: Message) -> Iterator[tuple[Step, Block, str]]:
        if gained.reasoning:
            yield from self._within("thought", gained.reasoning)
        if gained.content:
            yield from self._within("text", gained.content)
        for index, call in gained.calls.items():
            if index != self._call:
                self._call = index
                yield from self._begin("call", call.name)
            yield from self._more(call.arguments)

    def end(self) -> Iterator[tuple[Step, Block, str]]:
        """An answer of nothing is an empty text all the same."""
        if not self.count:
            yield from self._begin("text")
        yield from self._close()

    def _within(self, kind: Kind, text: str) -> Iterator[tuple[Step, Block, str]]:
        if self.open is None or self.open.kind != kind:
            yield from self._begin(kind)
        yield from self._more(text)

    def _begin(self, kind: Kind, name: str = "") -> Iterator[tuple[Step, Block, str]]:
        yield from self._close()
        self.open, self.count = Block(kind, self.count, name), self.count + 1
        yield "begun", self.open, ""

    def _more(self, text: str) -> Iterator[tuple[Step, Block, str]]:
        assert self.open is not None
        if text:
            self.open.pieces.append(text)
            yield "gained", self.open, text

    def _close(self) -> Iterator[tuple[Step, Block, str]]:
        if self.open is not None:
            ended, self.open = self.open, None
            yield "ended", ended, ""
