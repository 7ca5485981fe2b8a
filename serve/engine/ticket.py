"""The asyncio side of the engine: one client's requests and what they learn."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from serve.engine.engine import Engine
from serve.engine.operations import Update
from serve.engine.request import Request


class Ticket:
    """Requests that were queued together; whoever holds it must close it.

    followers: has them while they are not answered. Raises QueueFull, and then none is queued.
    """

    def __init__(self, engine: Engine, requests: list[Request], followers: set[Request]):
        self._engine, self.requests, self._followers = engine, requests, followers
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()
        self._began = time.monotonic()
        self._firsts: dict[int, float] = {}
        self._open = set(range(len(requests)))
        for index, request in enumerate(requests):
            request.emit = self._carrier(index)
        engine.submit(requests)
        followers.update(requests)
        engine.metrics.prompt_tokens.inc(sum(len(request.tokens) for request in requests))

    def _carrier(self, index: int) -> Callable[[Update], None]:
        def carry(update: Update) -> None:  # called by the engine's thread
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._updates.put_nowait, (index, update))

        return carry

    async def updates(self) -> AsyncIterator[tuple[int, Update]]:
        """(which request, what it learned) until all have ended."""
        while self._open:
            index, update = await self._updates.get()
            if index in self._open:
                self._measure(index, update)
                yield index, update
            if not self._updates.empty():
                await asyncio.sleep(0)  # a queue that is never empty would let nobody else on

    def stop(self, index: int) -> None:
        """The host found the end of an answer: a stop string, for one."""
        if index in self._open:
            self._engine.cancel(self.requests[index], "stop")
            self._measure(index, Update(finish="stop"))

    def close(self) -> None:
        """Nobody listens any more."""
        for index in list(self._open):
            self._engine.cancel(self.requests[index], "cancelled")
            self._measure(index, Update(finish="cancelled"))

    def _measure(self, index: int, update: Update) -> None:
        metrics, now = self._engine.metrics, time.monotonic()
        if update.tokens and not update.of_prompt:
            metrics.generated_tokens.inc(len(update.tokens))
            if self._firsts.setdefault(index, now) == now:
                metrics.first_token.observe(now - self._began)
        if update.finish:
            self._open.discard(index)
            self._followers.discard(self.requests[index])
            metrics.finished.labels(update.finish).inc()
            metrics.whole.observe(now - self._began)
            count = len(self.requests[index].answer)
            if count > 1 and index in self._firsts:
                metrics.per_token.observe((now - self._firsts[index]) / (count - 1))
