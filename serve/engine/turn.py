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
    chunk: int  # most tokens of prompts between two steps, a power of two
    step_tokens: int  # that each answer gains between two looks of the host
    queue: int  # requests that may wait
    tile: int = 16  # tokens: a piece of a text costs a multiple of it
    share: bool = True  # whether texts may begin in pages of others
    draft_tokens: int = 0  # that may be accepted beside each token of a step

    @property
    def sizes(self) -> list[int]:
        return sizes(self.chunk, self.tile)

    @property
    def scored(self) -> int:
        return scored(self.sizes)


def sizes(chunk: int, tile: int) -> list[int]:
    """Tokens of each program for prompts: a chunk, a quarter of it, ... down to a tile."""
    found = [chunk]
    while found[0] // 4 >= tile:
        found.insert(0, found[0] // 4)
    return found


def scored(sizes: list[int]) -> int:
    """Most of one ScoreChunk, of whose tokens each has logits over the vocabulary."""
    return sizes[-2:][0]


@dataclass(frozen=True)
class Turn:
    """Operations, and beside each the requests its result belongs to, by row."""

    operations: list[Operation] = field(default_factory=list)
    readers: list[dict[int, Request]] = field(default_factory=list)

    def add(self, operation: Operation, readers: dict[int, Request] | None = None) -> None:
        self.operations.append(operation)
        self.readers.append(readers or {})
