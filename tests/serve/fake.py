"""A device that counts: it plays the decode functions' part without any arrays."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.engine.request import Request
from serve.engine.slot_operations import (
    CopyPrefix,
    Prefill,
    Release,
    Result,
    ScoreChunk,
    Step,
    Update,
)
from serve.engine.slot_scheduler import Scheduler


@dataclass
class Slot:
    """What a slot holds. The answer to a prompt is sum of its ids, and then one more each time."""

    held: list[int] = field(default_factory=list)
    token: int = 0
    remaining: int = 0
    ends: Collection[Any] = ()


@dataclass
class Fake:
    """Runs operations as the real runner does, checking that each makes sense."""

    slots: int
    chunk: int
    log: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def warm(self, tell: Any = None) -> None:
        pass

    def close(self) -> None:
        pass

    def reset(self) -> None:
        self.state = [Slot() for _ in range(self.slots)]

    def run(self, operations: list[Any]) -> list[Any]:
        self.log += operations
        return [self._run(operation) for operation in operations]

    def read(self, operations: list[Any], outputs: list[Any]) -> list[Any]:
        return outputs

    def _run(self, operation: Any) -> Result | None:
        match operation:
            case Release(slot):
                self.state[slot].remaining = 0
            case CopyPrefix(source, slot, tokens):
                assert self.state[source].held[: len(tokens)] == list(tokens)
                self.state[slot] = Slot(list(tokens))
            case Prefill():
                return self._prefill(operation)
            case ScoreChunk(slot, tokens, following, start, _):
                assert start % self.chunk == 0
                assert len(tokens) == len(following) <= self.chunk
                return result([list(following)], [True])
            case Step(count, masks):
                return self._step(count, masks)
        return None

    def _prefill(self, chunk: Prefill) -> Result:
        slot = self.state[chunk.slot]
        assert not slot.remaining, "a slot that answers is not filled"
        assert chunk.start % self.chunk == 0
        assert 0 < len(chunk.tokens) <= self.chunk
        assert chunk.start <= len(slot.held), "no chunk is left out"
        slot.held = [*slot.held[: chunk.start], *chunk.tokens]
        if len(slot.held) < chunk.prompt_length:
            return result([[]], [False])
        slot.token, slot.ends = sum(slot.held), chunk.settings or ()
        slot.remaining = chunk.max_new_tokens - 1
        if slot.token in slot.ends:
            slot.remaining = 0
        return result([[slot.token]], [slot.remaining > 0])

    def _step(self, count: int, masks: Mapping[int, bytes] | None) -> Result:
        rows = []
        for number, slot in enumerate(self.state):
            row = []
            for _ in range(count):
                if slot.remaining and (masks is None or masks.get(number) != b""):
                    slot.token += 1
                    slot.remaining = 0 if slot.token in slot.ends else slot.remaining - 1
                    row.append(slot.token)
            rows.append(row)
        return result(rows, [slot.remaining > 0 for slot in self.state])


def result(tokens: list[Any], active: list[bool]) -> Result:
    best = lambda row, place, most: [(tokens[row][place], -0.5)][:most]
    return Result(tokens, [[-0.5] * len(row) for row in tokens], active, best)


def answer(tokens: list[int], count: int, ends: tuple[Any, ...] = ()) -> list[Any]:
    """What the fake says to a prompt."""
    said = list(range(sum(tokens), sum(tokens) + count))
    stops = [place for place, token in enumerate(said) if token in ends]
    return said[: stops[0] + 1] if stops else said


class Client:
    """Somebody who waits for an answer."""

    def __init__(self, tokens: list[int], count: int = 5, **how: Any) -> None:
        self.updates: list[Update] = []
        ends = how.pop("ends", ())
        self.wanted = answer(tokens, count, ends)
        self.request = Request(
            tokens, ends, count, self.updates.append, ends=[(end,) for end in ends], **how
        )

    @property
    def tokens(self) -> list[Any]:
        return [token for update in self.updates if not update.of_prompt for token in update.tokens]

    @property
    def finish(self) -> str:
        return self.updates[-1].finish if self.updates else ""


def drive(schedule: Scheduler, device: Fake, turns: int = 10_000, ahead: bool = True) -> int:
    """The engine's loop: with `ahead` a turn is read after the next has been started."""
    under_way = None
    for count in range(turns):
        if not schedule.busy and under_way is None:
            return count
        turn = schedule.next()
        started = device.run(turn.operations)
        if not ahead:
            schedule.take(turn, device.read(turn.operations, started))
            continue
        if under_way:
            schedule.take(under_way[0], device.read(under_way[0].operations, under_way[1]))
        under_way = (turn, started) if turn.operations else None
    if under_way:
        schedule.take(under_way[0], device.read(under_way[0].operations, under_way[1]))
    return turns
