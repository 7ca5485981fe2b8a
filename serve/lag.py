"""How long the event loop was held up: what nobody's request should be able to make long."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_PERIOD = 0.01  # seconds between two looks
_WINDOW = 10.0


class Lag:
    """Looks on inside `watching`. observe: told of every look, in seconds."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._seen: deque[tuple[float, float]] = deque()  # when, how late; later ones are smaller

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        looking = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            looking.cancel()

    def worst(self, seconds: float = _WINDOW) -> float:
        """The longest, in seconds, of the last so many."""
        since = time.monotonic() - seconds
        return max((late for when, late in list(self._seen) if when >= since), default=0.0)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PERIOD
            await asyncio.sleep(_PERIOD)
            late = max(0.0, loop.time() - due)
            self._observe(late)
            self._note(late)

    def _note(self, late: float) -> None:
        now = time.monotonic()
        while self._seen and self._seen[-1][1] <= late:
            self._seen.pop()
        while self._seen and self._seen[0][0] < now - _WINDOW:
            self._seen.popleft()
        self._seen.append((now, late))
