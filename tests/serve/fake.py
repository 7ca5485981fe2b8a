"""A device that counts: it plays the decode functions' part without any arrays.

What it says next follows from what the pages of a slot's table hold, as with real keys and values:
a page too few, or of somebody else, gives other tokens.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serve.engine.operations import (
    CopyPage,
    Piece,
    Prefill,
    Release,
    Result,
    ScoreChunk,
    SetPages,
    Step,
    Update,
)
from serve.engine.request import Request
from serve.engine.scheduler import Scheduler
from serve.engine.turn import Limits, Turn

RUBBISH = -1.0


@dataclass(frozen=True)
class Wish:
    """What a request asks of the device."""

    seed: int = 0
    ends: Sequence[int] = ()


@dataclass
class Slot:
    """What a slot was told. Its newest token is the last of `heard` and not in a page yet."""

    table: list[int] = field(default_factory=list)
    heard: list[int] = field(default_factory=list)
    piece: Any = None
    active: bool = False


def key(before: float, token: int, adapter: int) -> float:
    """What a page holds of a token: as keys and values, it depends on all tokens before."""
    assert before != RUBBISH, "a page that nobody filled is read"
    return (int(before) * 1000003 + token * 31 + adapter * 7919 + 17) % 2**31


def said(last: float, seed: int) -> int:
    return int((int(last) * 2654435761 + seed * 97) % 2**32 >> 8) % 50


class Fake:
    """Runs operations as the real runner does, checking that each makes sense."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.log: list[Any] = []
        self.reset()

    def warm(self, tell: Any = None) -> None:
        pass

    def close(self) -> None:
        pass

    def reset(self) -> None:
        self.pool = [[RUBBISH] * self.limits.page for _ in range(self.limits.pages)]
        self.state = [Slot() for _ in range(self.limits.slots)]

    def run(self, operations: list[Any]) -> list[Any]:
        self.log += operations
        return [self._run(operation) for operation in operations]

    def read(self, operations: list[Any], outputs: list[Any]) -> list[Any]:
        return outputs

    def _run(self, operation: Any) -> Result | None:
        match operation:
            case Release(slot):
                self.state[slot].active = False
            case SetPages(slot, first, pages):
                table = self.state[slot].table
                assert first <= len(table)
                table[first : first + len(pages)] = pages
            case CopyPage(source, target):
                self.pool[target] = list(self.pool[source])
            case Prefill(pieces):
                return self._prefill(pieces)
            case ScoreChunk(slot, tokens, following, start, _, adapter):
                assert len(tokens) == len(following) <= self.limits.chunk
                self._write(self.state[slot], start, tokens, adapter)
                return result([list(following)], [True])
            case Step(slots, count, masks):
                assert len(set(slots)) == len(slots) > 0
                assert masks is None or (count == 1 and set(masks) == set(slots))
                return self._step_all(slots, count, masks or {})
        return None

    # --- pages ---------------------------------------------------------------------------------
    def _read(self, slot: Slot, place: int) -> float:
        return self.pool[slot.table[place // self.limits.page]][place % self.limits.page]

    def _write(self, slot: Slot, start: int, tokens: Sequence[int], adapter: int) -> None:
        before = self._read(slot, start - 1) if start else 0.0
        for place, token in enumerate(tokens, start):
            before = key(before, token, adapter)
            self._put(slot, place, before)

    def _put(self, slot: Slot, place: int, value: float) -> None:
        self.pool[slot.table[place // self.limits.page]][place % self.limits.page] = value

    # --- operations ----------------------------------------------------------------------------
    def _prefill(self, pieces: Sequence[Piece]) -> Result:
        tile = self.limits.tile
        sizes = [-(-len(piece.tokens) // tile) * tile for piece in pieces]
        assert 0 < sum(sizes) <= self.limits.chunk
        assert len({piece.slot for piece in pieces}) == len(pieces)
        starts = [self._read(self.state[one.slot], one.start - 1) for one in pieces if one.start]
        assert RUBBISH not in starts, "a piece needs what another of the same call computes"
        rows, active = [], []
        for piece in pieces:
            slot = self.state[piece.slot]
            if piece.start == len(piece.before):
                slot.heard = []
            slot.heard += piece.before
            assert len(slot.heard) == piece.start, "no token is left out"
            slot.heard += piece.tokens
            self._write(slot, piece.start, piece.tokens, piece.adapter)
            slot.piece, slot.active = piece, piece.last
            rows.append([self._sample(slot, piece.mask)] if piece.last else [])
            active.append(slot.active)
        return result(rows, active)

    def _sample(self, slot: Slot, mask: bytes | None) -> int:
        piece, heard = slot.piece, slot.heard
        token = said(self._read(slot, len(heard) - 1), piece.settings.seed)
        heard.append(token)
        left = piece.prompt_length + piece.max_new_tokens - len(heard)
        slot.active = left > 0 and token not in piece.settings.ends
        return token

    def _step_all(self, slots: Sequence[int], count: int, masks: Mapping[int, bytes]) -> Result:
        rows = [self._step(self.state[slot], count, masks.get(slot)) for slot in slots]
        made = result(rows, [self.state[slot].active for slot in slots])
        drafts = 0 if masks else self.limits.draft_tokens
        told = [[count, count * drafts, max(0, len(row) - count)] for row in rows]
        return replace(made, drafts=told) if drafts else made

    def _step(self, slot: Slot, count: int, mask: bytes | None) -> list[int]:
        """At least count tokens; with drafts more of them, now and then."""
        row: list[int] = []
        drafts = self.limits.draft_tokens if mask is None else 0
        for _ in range(count):
            first = len(slot.heard) - 1
            for _ in range(1 + (sum(slot.heard) % (1 + drafts) if drafts else 0)):
                if slot.active:
                    self._write(slot, len(slot.heard) - 1, slot.heard[-1:], slot.piece.adapter)
                    row.append(self._sample(slot, mask))
            if slot.active:  # drafts that were refused have left something
                end = slot.piece.prompt_length + slot.piece.max_new_tokens - 1
                for place in range(len(slot.heard) - 1, min(first + drafts + 1, end)):
                    self._put(slot, place, 5.0)
        return row


def result(tokens: list[Any], active: list[bool]) -> Result:
    best = lambda row, place, most: [(tokens[row][place], -0.5)][:most]
    return Result(tokens, [[-0.5] * len(row) for row in tokens], active, best)


def answer(tokens: list[int], count: int, wish: Wish, adapter: int = 0) -> list[int]:
    """What the fake says to a prompt that is alone."""
    spoken: list[int] = []
    last = 0.0
    for token in tokens:
        last = key(last, token, adapter)
    while len(spoken) < count:
        spoken.append(said(last, wish.seed))
        last = key(last, spoken[-1], adapter)
        if spoken[-1] in wish.ends:
            break
    return spoken


class Client:
    """Somebody who waits for an answer."""

    _ends = itertools.count(1)

    def __init__(self, tokens: list[int], count: int = 5, seed: int = 0, **how: Any) -> None:
        self.updates: list[Update] = []
        wish = Wish(seed, how.pop("ends", ()))
        self.wanted = answer(tokens, count, wish, how.get("adapter", 0))
        ends = [(end,) for end in wish.ends]
        self.request = Request(tokens, wish, count, self._hear, ends=ends, **how)
        self.ended = 0  # as the how manieth

    def _hear(self, update: Update) -> None:
        self.updates.append(update)
        if update.finish:
            self.ended = next(self._ends)

    @property
    def tokens(self) -> list[Any]:
        return [token for update in self.updates if not update.of_prompt for token in update.tokens]

    @property
    def finish(self) -> str:
        return self.updates[-1].finish if self.updates else ""


class Loop:
    """The engine's: with `ahead` a turn is read after the next has been started."""

    def __init__(self, schedule: Scheduler, device: Fake, ahead: bool = True) -> None:
        self._schedule, self._device, self._ahead = schedule, device, ahead
        self._under_way: tuple[Turn, list[Any]] | None = None

    def turn(self) -> bool:
        """Whether there was something to do."""
        if not self._schedule.busy and self._under_way is None:
            return False
        turn = self._schedule.next()
        self._schedule.check()
        started = self._device.run(turn.operations)
        if self._ahead:
            (turn, started), self._under_way = (
                self._under_way or (Turn(), []),
                (turn, started) if turn.operations else None,
            )
        self._schedule.take(turn, self._device.read(turn.operations, started))
        self._schedule.check()
        return True

    def run(self, turns: int = 10_000) -> int:
        """So many turns, or as many as there are; how many."""
        return next((count for count in range(turns) if not self.turn()), turns)


def make(**how: Any) -> tuple[Scheduler, Fake, Loop]:
    usual = {"slots": 2, "pages": 64, "page": 4, "chunk": 16, "step_tokens": 3, "queue": 100}
    limits = Limits(**usual | how)
    schedule, device = Scheduler(limits), Fake(limits)
    return schedule, device, Loop(schedule, device)


def submit(schedule: Scheduler, *clients: Client) -> None:
    for client in clients:
        schedule.submit(client.request)


def pieces(device: Fake) -> list[Piece]:
    return [one for op in device.log if isinstance(op, Prefill) for one in op.pieces]
