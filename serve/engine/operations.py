"""What the schedule asks of the device, and what comes back; no array code.

Keys and values lie in pages, of which every slot has a table; the schedule says which page stands
where. Operations run in order, so a page may be given to another slot as soon as it is released.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Release:
    """Stop a slot."""

    slot: int


@dataclass(frozen=True)
class SetPages:
    """From block `first` on, the slot's table holds these pages."""

    slot: int
    first: int
    pages: Sequence[int]


@dataclass(frozen=True)
class CopyPage:
    """Give a page the content of another."""

    source: int
    target: int


@dataclass(frozen=True)
class Piece:
    """Some tokens of a text, which is a prompt and what has been answered to it so far."""

    slot: int
    tokens: Sequence[int]
    start: int
    prompt_length: int  # ids from there on are the answer's
    settings: Any
    max_new_tokens: int  # of the whole answer
    mask: bytes | None = None  # a bit for every id the next token may be; None: all
    adapter: int = 0  # its number; 0 is the bare model
    last: bool = False  # the text ends here: the next token is sampled
    before: Sequence[int] = ()  # ids before `start` that the slot found in pages; a text's first
    # piece has `start` of them


@dataclass(frozen=True)
class Prefill:
    """Pieces of texts of different slots, computed in one call."""

    pieces: Sequence[Piece]


@dataclass(frozen=True)
class ScoreChunk:
    """Log probabilities of the ids that follow the tokens of a chunk."""

    slot: int
    tokens: Sequence[int]
    following: Sequence[int]
    start: int
    prompt_length: int
    adapter: int = 0


@dataclass(frozen=True)
class Step:
    """`count` tokens, or more where drafts hold, for each of these slots, until its answer ends.

    masks: None, or with count 1 for slots that follow a grammar a bit for every id that may come
    next; the others are free.
    """

    slots: Sequence[int]
    count: int
    masks: Mapping[int, bytes] | None = None


Operation = Release | SetPages | CopyPage | Prefill | ScoreChunk | Step


@dataclass(frozen=True)
class Result:
    """What an operation gave, by row: a piece of a Prefill, a slot of a Step, or the one there is.

    best: the likeliest ids and their log probabilities at a row and index, so many of them.
    vectors: of each row, where the network is asked for these and not for tokens.
    """

    tokens: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]
    active: Sequence[bool]
    best: Callable[[int, int, int], list[tuple[int, float]]]
    vectors: Sequence[Any] | None = None
    drafts: Sequence[Sequence[int]] = ()  # by row: drafts verified, their tokens, those that held


@dataclass
class Update:
    """What a request learns at once."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    best: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: str = ""  # stop, length, cancelled or error, when nothing more will come
    of_prompt: bool = False  # the scores are those of prompt tokens
    vector: Any = None  # what the whole prompt amounts to
