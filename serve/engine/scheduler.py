"""Who gets which slot and which pages, and what the device does next: bookkeeping without arrays.

    turn = schedule.next()            # operations for the device
    schedule.take(turn, results)      # what they gave, one turn or more later

`next` may be called before the results of the turn before are known: the device itself ends
answers at their stop sequences and lengths, so a turn never depends on what is still under way,
except for requests that follow a grammar, which wait for their last token, and for those that gave
their pages up, which come back when their last tokens are known.
"""

from collections import deque
from collections.abc import Sequence

from qwen_jax.decoding.sampling import finish_reason
from serve.engine.fair_queue import FairQueue
from serve.engine.operations import (
    CopyPage,
    Prefill,
    Release,
    Result,
    SetPages,
    Step,
    Update,
)
from serve.engine.prompts import Prompts
from serve.engine.request import Request
from serve.engine.tables import Tables
from serve.engine.turn import Limits, Turn

_PATIENCE = 0.005  # seconds that a turn waits for a grammar


class Scheduler:
    """Slots, pages, and the requests in and before them."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.queue: FairQueue[Request] = FairQueue(limits.queue, lambda request: request.priority)
        self.read_tokens = 0  # of prompts, ever
        self.shared_tokens = 0  # of them, those that others had computed
        self.preemptions = 0
        self.drafts = [0, 0, 0]  # verified, their tokens, and of them those that held, ever
        self._arrivals = 0
        self.reset()

    def reset(self) -> None:
        """Forget all slots and pages: the device lost them."""
        self._free = deque(range(self._limits.slots))
        self._released: list[int] = []
        self._running: dict[int, Request] = {}
        self._returning: list[Request] = []  # without pages; some of their tokens are under way
        self.tables = Tables(self._limits.pages, self._limits.page, self._limits.share)
        self._prompts = Prompts(self._limits, self.tables)

    @property
    def occupied(self) -> int:
        """Slots that belong to a request."""
        return self._limits.slots - len(self._free)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self.queue) + len(self._returning)

    @property
    def busy(self) -> bool:
        return bool(self.occupied or self.waiting or self._released)

    def submit(self, request: Request) -> None:
        """Raises QueueFull, or ValueError for what can never fit."""
        self.tables.check_size(request)
        self._arrivals += 1
        request.number = self._arrivals
        self.queue.put(request.tenant, request)

    def cancel(self, request: Request, finish: str = "cancelled") -> None:
        """Nobody waits for more of it; its slot is free at once."""
        if request.finish:
            return
        self.queue.remove(request.tenant, request)
        self._end(request, Update(), finish, going=True)

    def fail(self) -> None:
        """End every request in a slot with an error, and forget the slots."""
        for request in [*self._running.values(), *self._prompts, *self._returning]:
            request.finish = "error"
            request.emit(Update(finish="error"))
        self.reset()

    def check(self) -> None:
        """Raises AssertionError where a page or a slot is lost, or is held by who should not."""
        holders = [*self._prompts, *self._running.values()]
        self.tables.check(holders)
        slots = [*self._free, *(request.slot for request in holders)]
        assert sorted(slots) == list(range(self._limits.slots)), "a slot is lost"

    # --- the next turn -------------------------------------------------------------------------
    def next(self) -> Turn:
        """What the device should do now; no operations where it has to wait, or has no work."""
        turn = Turn()
        for request in [one for one in self._prompts if one.constraint and one.constraint.finish]:
            self._end(request, Update(), "length", going=True)  # it takes too long to know
        for slot in self._released:
            turn.add(Release(slot))
        self._released.clear()
        self._admit(turn)
        for request in self._prompts.advance(turn):
            self._running[request.slot] = request
            if not request.answer:
                self.read_tokens += len(request.tokens)
                self.shared_tokens += request.shared
        self._step(turn)
        return turn

    def _admit(self, turn: Turn) -> None:
        """Give slots and pages to those who wait.

        Not to more than the next chunk can begin: those behind will find more pages to share.
        """
        while self._free and len(self.queue) and self._prompts.unbegun < self._limits.chunk:
            request = self._next_fitting()
            if request is None:
                return
            request.slot = self._free.popleft()
            turn.add(SetPages(request.slot, 0, tuple(request.pages)))
            if request.copied >= 0:
                target = request.pages[request.prefilled // self._limits.page]
                turn.add(CopyPage(request.copied, target))
            if not request.preempted:
                request.shared = request.prefilled
            self._prompts.add(request)

    def _next_fitting(self) -> Request | None:
        """The next request of which the text fits, with its pages.

        A tenant that holds no pages is waited for; another, whose next does not fit, is passed by.
        """
        for tenant, request in self.queue.heads():
            if self.tables.admit(request, spare=len(self._running)):
                return self.queue.take(tenant)
            if not self.tables.held(tenant):
                return None
        return None

    def _step(self, turn: Turn) -> None:
        """Steps for the answers that can go on: of those that follow grammars, and of the others.

        While prompts are computed, between two chunks of them every answer gains one token.
        """
        count = 1 if len(self._prompts) else self._limits.step_tokens
        free: list[Request] = []
        masked: dict[Request, bytes] = {}
        patience = _PATIENCE
        for request in list(self._running.values()):
            if request.slot < 0 or len(request.answer) + request.due >= request.max_new_tokens:
                continue
            if request.constraint is None:
                if self._room(request, count * (1 + self._limits.draft_tokens), turn):
                    free.append(request)
            elif not request.due and self._room(request, 1, turn):
                if mask := request.constraint.mask(patience):
                    masked[request] = mask
                    continue
                patience = 0.0
                if finish := request.constraint.finish:  # it takes too long to know
                    self._end(request, Update(), finish, going=True)
        masked = {one: mask for one, mask in masked.items() if one.slot >= 0}
        free = [one for one in free if one.slot >= 0]  # some gave their pages up since
        if masked:
            masks = {one.slot: mask for one, mask in masked.items()}
            self._add_step(turn, list(masked), 1, masks)
        if free:
            self._add_step(turn, free, count, None)

    def _add_step(
        self, turn: Turn, requests: list[Request], count: int, masks: dict[int, bytes] | None
    ) -> None:
        step = Step([request.slot for request in requests], count, masks)
        most = self._most(step)
        for request in requests:
            request.due += count
            request.bound += most
        turn.add(step, dict(enumerate(requests)))

    def _most(self, operation: Step | Prefill) -> int:
        """Tokens that an operation may give a slot."""
        if isinstance(operation, Prefill) or operation.masks is not None:
            return 1
        return operation.count * (1 + self._limits.draft_tokens)

    # --- pages ---------------------------------------------------------------------------------
    def _room(self, request: Request, count: int, turn: Turn) -> bool:
        """Pages for so many more tokens, of others if need be; False: it gave up its own."""
        most = min(len(request.answer) + request.bound + count, request.max_new_tokens)
        tokens = len(request.tokens) + most - 1  # the newest is not in a page yet
        missing = -(-tokens // self._limits.page) - len(request.pages)
        if missing <= 0:
            return True
        while self.tables.pages.available < missing:
            victim = self._youngest()
            self._preempt(victim, turn)
            if victim is request:
                return False
        first = len(request.pages)
        turn.add(SetPages(request.slot, first, tuple(self.tables.grow(request, missing))))
        return True

    def _youngest(self) -> Request:
        """The last that came, of the tenant that holds most."""
        holders = [*self._prompts, *self._running.values()]
        rank = lambda one: (self.tables.held(one.tenant), one.tenant, one.number)
        return max((one for one in holders if one.max_new_tokens and not one.scoring), key=rank)

    def _preempt(self, request: Request, turn: Turn) -> None:
        """It gives its pages up, and is the next of its tenant to be computed, as if never away."""
        self.preemptions += 1
        request.preempted = True
        turn.add(Release(request.slot))
        self._leave(request)
        if request.due:
            self._returning.append(request)
        else:
            self.queue.put_first(request.tenant, request)

    def _leave(self, request: Request) -> None:
        """Its slot and its pages are free."""
        self._running.pop(request.slot, None)
        self._prompts.remove(request)
        self.tables.release(request)
        self._free.append(request.slot)
        request.slot, request.given = -1, 0

    # --- what a turn gave ----------------------------------------------------------------------
    def take(self, turn: Turn, results: Sequence[Result | None]) -> None:
        """Pass results on to those who wait for them."""
        pairs = zip(turn.operations, turn.readers, results, strict=True)
        for operation, readers, result in pairs:
            due = operation.count if isinstance(operation, Step) else 1
            most = self._most(operation) if isinstance(operation, Step | Prefill) else 0
            for row, request in readers.items():
                if request.finish:
                    continue
                if most and result is not None:
                    request.due -= due
                    request.bound -= most
                    self._deliver(request, row, result)
                elif result is not None:
                    request.emit(_update(request, row, result, of_prompt=True))
                else:
                    self._end(request, Update(), "length")

    def _deliver(self, request: Request, row: int, result: Result) -> None:
        update = _update(request, row, result)
        if result.drafts:
            count, drafted, accepted = result.drafts[row]
            request.drafted += drafted
            request.accepted += accepted
            for place, more in enumerate((count, drafted, accepted)):
                self.drafts[place] += more
        request.answer += update.tokens
        if request.slot >= 0:
            request.prefilled = request.length - 1
            self.tables.publish(request)
        if request.constraint is not None:
            for token in update.tokens:
                request.constraint.accept(token)
        if request.constraint is not None and request.constraint.finish:
            self._end(request, update, request.constraint.finish, going=True)
        elif not result.active[row]:
            end = finish_reason(
                request.tokens, request.answer, request.max_new_tokens, request.ends
            )
            self._end(request, update, end)
        else:
            request.emit(update)
            if request.slot < 0 and not request.due:
                self._returning.remove(request)
                self.queue.put_first(request.tenant, request)

    def _end(self, request: Request, update: Update, finish: str, going: bool = False) -> None:
        """going: the device would write on."""
        request.finish = update.finish = finish
        if request.slot >= 0:
            if going:
                self._released.append(request.slot)
            self._leave(request)
        elif request in self._returning:
            self._returning.remove(request)
        request.emit(update)


def _update(request: Request, row: int, result: Result, of_prompt: bool = False) -> Update:
    vector = None if result.vectors is None else result.vectors[row]
    update = Update(list(result.tokens[row]), of_prompt=of_prompt, vector=vector)
    if of_prompt or request.logprobs is not None:
        count, indices = request.logprobs or 0, range(len(update.tokens))
        update.logprobs = list(result.logprobs[row][: len(update.tokens)])
        update.best = [result.best(row, index, count) for index in indices]
    return update
