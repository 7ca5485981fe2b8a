"""One turn of the device, and within which limits it is made."""

from dataclasses import dataclass, field

from serve.engine.operations import Operation
from serve.engine.request import Request


@dataclass(frozen=True)
class Limits:
    """What a schedule may use."""

    slots: int  # answers in a step
    pages: int
    page: int  # tokens
    chunk: int  # most tokens of prompts between two steps
    step_tokens: int  # that each answer gains between two looks of the host
    queue: int  # requests that may wait
    tile: int = 16  # tokens: a piece of a text costs a multiple of it
    share: bool = True  # whether texts may begin in pages of others
    draft_tokens: int = 0  # that may be accepted beside each token of a step


@dataclass(frozen=True)
class Turn:
    """Operations, and beside each the requests its result belongs to, by row."""

    operations: list[Operation] = field(default_factory=list)
    readers: list[dict[int, Request]] = field(default_factory=list)

    def add(self, operation: Operation, readers: dict[int, Request] | None = None) -> None:
        self.operations.append(operation)
        self.readers.append(readers or {})
