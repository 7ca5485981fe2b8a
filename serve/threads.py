"""Threads that never hold up the end of the process, whatever they are busy with."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")


class Threads:
    """A few of them; work is done in the order it came."""

    def __init__(self, name: str, count: int):
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], Any] | None]
        self._work, self._count = queue.SimpleQueue(), count
        for _ in range(count):
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def submit(self, work: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        made: Future[Outcome] = Future()
        self._work.put((made, work, arguments))
        return made

    def close(self) -> None:
        """End them when what was submitted is done."""
        for _ in range(self._count):
            self._work.put(None)

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            made, work, arguments = item
            if made.set_running_or_notify_cancel():
                try:
                    made.set_result(work(*arguments))
                except BaseException as error:
                    made.set_exception(error)
            del item, made, work, arguments  # what they hold should not wait for the next
