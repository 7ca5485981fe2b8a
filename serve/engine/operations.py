"""What the schedule asks of the device, and what comes back; no array code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Release:
    """Stop a slot."""

    slot: int


@dataclass(frozen=True)
class CopyPrefix:
    """Give a slot the first tokens of what another holds."""

    source: int
    slot: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class Prefill:
    """A chunk of a prompt; the last one starts the slot."""

    slot: int
    tokens: Sequence[int]
    start: int
    prompt_length: int
    settings: Any
    max_new_tokens: int
    mask: bytes | None = None  # a bit for every id the first new token may be; None: all
    adapter: int = 0  # its number; 0 is the bare model


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
    """Up to `count` tokens for every running slot.

    masks: None, or for slots that follow a grammar a bit for every id that may come next, no bits
    at all where the slot has to wait; the other slots are free.
    """

    count: int
    masks: Mapping[int, bytes] | None = None


Operation = Release | CopyPrefix | Prefill | ScoreChunk | Step


@dataclass(frozen=True)
class Result:
    """What an operation gave, by slot; a Prefill or a Judge has one row, of its own slot.

    best: the likeliest ids and their log probabilities at a slot and index, so many of them.
    """

    tokens: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]
    active: Sequence[bool]
    best: Callable[[int, int, int], list[tuple[int, float]]]


@dataclass
class Update:
    """What a request learns at once."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    best: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: str = ""  # stop, length, cancelled or error, when nothing more will come
    of_prompt: bool = False  # the scores are those of prompt tokens
