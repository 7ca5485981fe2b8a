"""Threads for work that is too long for the event loop; tenants share them fairly."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from qwen_jax import memory
from serve.engine.fair_queue import QueueFull
from serve.threads import Threads

Outcome = TypeVar("Outcome")

SHORT = 64 * 1024  # bytes of a body that takes milliseconds
_LONG = 0.05  # of its time that a thread works on longer ones at most: it holds Python's lock
_GROWTH = 32 * 2**20  # bytes of memory that are not given back at once


@dataclass
class _Tenant:
    turns: asyncio.Semaphore
    count: int = 0  # pieces of work that wait or run


class Lane:
    """Some threads. A tenant has `share` of them at most, and `most` pieces of work here at once.

    Whoever asks waits for his own work before it, and for `share` pieces of every other tenant.
    """

    def __init__(self, threads: Threads, share: int, most: int):
        self._threads, self._share, self._most = threads, share, most
        self._tenants: dict[str, _Tenant] = {}

    async def run(
        self, tenant: str, work: Callable[..., Outcome], *arguments: Any, bounded: bool = True
    ) -> Outcome:
        """The outcome of work, in a thread; raises QueueFull.

        bounded False: however much there is, as it ends what was taken in before.
        """
        mine = self._tenants.setdefault(tenant, _Tenant(asyncio.Semaphore(self._share)))
        if bounded and mine.count >= self._most:
            raise QueueFull(f"{mine.count} of your requests wait for {self._threads.name} already")
        mine.count += 1
        try:
            await mine.turns.acquire()
        except BaseException:
            self._leave(tenant, mine)
            raise
        loop = asyncio.get_running_loop()

        def done() -> None:
            mine.turns.release()
            self._leave(tenant, mine)

        working = self._threads.submit(work, *arguments)
        # not when the caller leaves: the thread is taken until the work is done
        working.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(done))
        return await asyncio.wrap_future(working)

    def close(self) -> None:
        self._threads.close()

    def _leave(self, tenant: str, mine: _Tenant) -> None:
        mine.count -= 1
        if not mine.count:
            del self._tenants[tenant]


class Lanes:
    """Where a server works: short texts and long ones apart, and grammars by themselves."""

    def __init__(self, most: int, grammars: int):
        """most: short texts that a tenant may wait for. grammars: processes that check them."""
        self.short = Lane(Threads("short texts", 2), 2, most)
        # The memory of long texts goes back: it would settle between what stays.
        trim = memory.trimming(_GROWTH)
        self.long = Lane(Threads("long texts", 2, busy=_LONG, then=trim), 1, 64)
        self.grammars = Lane(Threads("grammars", grammars), 1, 16)
        self.code = Lane(Threads("programs", 2), 1, 4)  # that models wrote, in children

    def for_text(self, size: int) -> Lane:
        """size: bytes."""
        return self.short if size <= SHORT else self.long

    def close(self) -> None:
        for lane in (self.short, self.long, self.grammars, self.code):
            lane.close()
