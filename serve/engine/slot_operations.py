"""What the schedule of whole slots asks of the device; no array code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.engine.operations import Release as Release
from serve.engine.operations import Result as Result
from serve.engine.operations import ScoreChunk as ScoreChunk
from serve.engine.operations import Update as Update


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
class Step:
    """Up to `count` tokens for every running slot.

    masks: None, or for slots that follow a grammar a bit for every id that may come next, no bits
    at all where the slot has to wait; the other slots are free.
    """

    count: int
    masks: Mapping[int, bytes] | None = None


Operation = Release | CopyPrefix | Prefill | ScoreChunk | Step
