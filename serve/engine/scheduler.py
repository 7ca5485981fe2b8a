"""Who gets which slot, and what the device does next: plain bookkeeping, without arrays.

    turn = schedule.next()            # operations for the device
    schedule.take(turn, results)      # what they gave, one turn or more later

`next` may be called before the results of the turn before are known: the device itself ends
answers at their stop sequences and lengths, so a turn never depends on what is still under way,
except for requests that follow a grammar, which wait for their last token.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from qwen_jax.decoding.sampling import finish_reason
from serve.engine.fair_queue import FairQueue
from serve.engine.operations import (
    CopyPrefix,
    Operation,
    Prefill,
    Release,
    Result,
    ScoreChunk,
    Step,
    Update,
)
from serve.engine.prefix_cache import PrefixCache, chain

_PATIENCE = 0.005  # seconds that a turn waits for a grammar


class Constraint(Protocol):
    """Which ids may come next; no mask while nobody knows."""

    def mask(self, patience: float = 0.0) -> bytes: ...

    def accept(self, token: int) -> None: ...

    @property
    def finish(self) -> str: ...  # stop or length, once nothing may follow


@dataclass(eq=False)
class Request:
    """One answer that somebody waits for."""

    tokens: Sequence[int]
    settings: Any
    max_new_tokens: int  # 0: only the prompt is scored
    emit: Callable[[Update], None]
    ends: Sequence[Sequence[int]] = ()  # stop sequences, to tell "stop" from "length"
    tenant: str = ""
    adapter: int = 0
    prefix_scope: str = ""  # requests share prefixes within it
    constraint: Constraint | None = None
    logprobs: int | None = None  # so many likeliest ids beside each token
    judged: bool = False  # log probabilities of the prompt are wanted
    priority: int = 0  # less is sooner, among the requests of one tenant

    slot: int = field(default=-1, init=False)
    digests: list[bytes] = field(default_factory=list, init=False)
    scored: int = field(default=0, init=False)  # prompt tokens judged so far
    prefilled: int = field(default=0, init=False)  # prompt tokens prefilled or shared so far
    shared: int = field(default=0, init=False)  # of them, those found in a slot
    issued: int = field(default=0, init=False)  # new tokens asked of the device
    answer: list[int] = field(default_factory=list, init=False)
    waiting: bool = field(default=False, init=False)  # its newest token is still unknown
    finish: str = field(default="", init=False)


@dataclass(frozen=True)
class Turn:
    """Operations, and beside each the requests its result belongs to, by row."""

    operations: list[Operation]
    readers: list[dict[int, Request]]


class Scheduler:
    """Slots and the requests in and before them."""

    def __init__(self, slots: int, chunk: int, queue_limit: int, step_tokens: int, share: bool):
        self._chunk, self._step_tokens, self._share = chunk, step_tokens, share
        self._slots = slots
        self.queue: FairQueue[Request] = FairQueue(queue_limit, lambda request: request.priority)
        self.shared_tokens = 0  # prompt tokens that needed no computing, ever
        self.reset()

    def reset(self) -> None:
        """Forget all slots: the device lost them."""
        self._free = deque(range(self._slots))  # the one that rests longest first
        self._released: list[int] = []
        self._prefilling: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._prefixes = PrefixCache(self._slots)

    @property
    def occupied(self) -> int:
        """Slots that belong to a request."""
        return self._slots - len(self._free)

    @property
    def busy(self) -> bool:
        return bool(self.occupied or len(self.queue) or self._released)

    def submit(self, request: Request) -> None:
        """Raises QueueFull."""
        self.queue.put(request.tenant, request)

    def cancel(self, request: Request, finish: str = "cancelled") -> None:
        """Nobody waits for more of it; its slot is free at once."""
        if request.finish:
            return
        if not self.queue.remove(request.tenant, request):
            self._released.append(request.slot)
        self._end(request, Update(), finish)

    def fail(self) -> None:
        """End every request in a slot with an error, and forget the slots."""
        for request in [*self._running.values(), *self._prefilling]:
            request.finish = "error"
            request.emit(Update(finish="error"))
        self.reset()

    # --- the next turn -------------------------------------------------------------------------
    def next(self) -> Turn:
        """What the device should do now; no operations where it has to wait, or has no work."""
        turn = Turn([], [])
        for slot in self._released:
            self._add(turn, Release(slot))
        self._released.clear()
        while self._free and len(self.queue):
            self._admit(self.queue.take(), turn)
        budget = self._chunk  # tokens: answers under way are not held up for more
        while self._prefilling and budget > 0:
            budget -= max(16, self._advance(self._prefilling.popleft(), turn))
        self._add_step(turn)
        return turn

    def _admit(self, request: Request, turn: Turn) -> None:
        request.digests = chain(request.prefix_scope, request.tokens, self._chunk)
        usable = request.digests[: (len(request.tokens) - 1) // self._chunk]
        if not self._share or request.judged:
            usable = []
        source, count = self._prefixes.find(usable, self._free)
        if source not in self._free:  # the slot whose content is worth least
            slot = min(self._free, key=lambda free: self._prefixes.held(free) > 0)
        else:
            slot = source
        self._free.remove(slot)
        request.slot = slot
        if count:
            request.prefilled = request.shared = count * self._chunk
            self.shared_tokens += request.shared
            self._add(turn, CopyPrefix(source, slot, request.tokens[: request.prefilled]))
        self._prefixes.reset(slot, request.digests[:count])
        self._prefilling.append(request)

    def _advance(self, request: Request, turn: Turn) -> int:
        """One chunk of a prompt; how many tokens it has."""
        last = len(request.tokens) - 1
        if request.judged and request.scored < last:
            start, end = request.scored, min(last, request.scored + self._chunk)
            tokens, following = request.tokens[start:end], request.tokens[start + 1 : end + 1]
            self._add(
                turn,
                ScoreChunk(
                    request.slot, tokens, following, start, len(request.tokens), request.adapter
                ),
                {0: request},
            )
            request.scored = end
            self._prefilling.append(request)
            return end - start
        if not request.max_new_tokens:  # an operation whose result ends the request
            self._add(turn, Release(request.slot), {0: request})
            self._running[request.slot] = request
            return 0
        start, end = request.prefilled, min(len(request.tokens), request.prefilled + self._chunk)
        operation = Prefill(
            slot=request.slot,
            tokens=request.tokens[start:end],
            start=start,
            prompt_length=len(request.tokens),
            settings=request.settings,
            max_new_tokens=request.max_new_tokens,
            mask=request.constraint.mask() if request.constraint and end > last else None,
            adapter=request.adapter,
        )
        self._add(turn, operation, {0: request} if end > last else {})
        if end - start == self._chunk:
            self._prefixes.add(request.slot, request.digests[start // self._chunk])
        request.prefilled = end
        if end > last:
            request.issued, request.waiting = 1, True
            self._running[request.slot] = request
        else:
            self._prefilling.append(request)
        return end - start

    def _add_step(self, turn: Turn) -> None:
        """A step, if it gives any slot a token."""
        readers, masks, patience = {}, {}, _PATIENCE
        for slot, request in list(self._running.items()):
            if request.issued >= request.max_new_tokens:
                continue
            if request.constraint is not None:
                masks[slot] = b"" if request.waiting else request.constraint.mask(patience)
                if not masks[slot] and not request.waiting:
                    patience = 0.0
                    if finish := request.constraint.finish:  # it takes too long to know
                        self._released.append(slot)
                        self._end(request, Update(), finish)
                        continue
            if masks.get(slot) != b"":
                readers[slot] = request
        if not readers:
            return
        count = 1 if masks or self._prefilling else self._step_tokens
        for request in readers.values():
            request.issued += count
            request.waiting = True
        # a slot may have more to do than the host knows of; without a mask it goes on
        self._add(turn, Step(count, masks or None), readers)

    @staticmethod
    def _add(turn: Turn, operation: Operation, readers: dict[int, Request] | None = None) -> None:
        turn.operations.append(operation)
        turn.readers.append(readers or {})

    # --- what a turn gave ----------------------------------------------------------------------
    def take(self, turn: Turn, results: Sequence[Result | None]) -> None:
        """Pass results on to those who wait for them."""
        pairs = zip(turn.operations, turn.readers, results, strict=True)
        for operation, readers, result in pairs:
            for row, request in readers.items():
                if request.finish:
                    continue
                if result is None:
                    self._end(request, Update(), "length")
                else:
                    self._deliver(request, row, result, isinstance(operation, ScoreChunk))

    def _deliver(self, request: Request, row: int, result: Result, of_prompt: bool) -> None:
        update = Update(list(result.tokens[row]), of_prompt=of_prompt)
        if of_prompt or request.logprobs is not None:
            count, indices = request.logprobs or 0, range(len(update.tokens))
            update.logprobs = list(result.logprobs[row][: len(update.tokens)])
            update.best = [result.best(row, index, count) for index in indices]
        if of_prompt:
            request.emit(update)
            return
        request.answer += update.tokens
        request.waiting = False
        if request.constraint is not None:
            for token in update.tokens:
                request.constraint.accept(token)
        if request.constraint is not None and request.constraint.finish:
            self._released.append(request.slot)  # the device would go on
            self._end(request, update, request.constraint.finish)
        elif not result.active[row]:
            end = finish_reason(
                request.tokens, request.answer, request.max_new_tokens, request.ends
            )
            self._end(request, update, end)
        else:
            request.emit(update)

    def _end(self, request: Request, update: Update, finish: str) -> None:
        request.finish = update.finish = finish
        if request.slot >= 0:
            self._running.pop(request.slot, None)
            if request in self._prefilling:
                self._prefilling.remove(request)
            self._free.append(request.slot)
        request.emit(update)
