"""Threads that never hold up the end of the process, whatever they are busy with."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")


class Threads:
    """A few of them; work is done in the order it came."""

    def __init__(
        self, name: str, count: int, busy: float = 1.0, then: Callable[[], object] | None = None
    ):
        """busy: of its time that each works at most; it rests when its work is done.

        then: what each does after every piece of work, whose outcome does not wait for it.
        """
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], Any] | None]
        self._work, self._count, self.name = queue.SimpleQueue(), count, name
        self._rest = 1 / busy - 1  # seconds for each one of the processor's
        self._then = then
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
            began = time.thread_time()
            if made.set_running_or_notify_cancel():
                try:
                    made.set_result(work(*arguments))
                except BaseException as error:
                    made.set_exception(error)
            del item, made, work, arguments  # what they hold should not wait for the next
            if self._then:
                self._then()
            if self._rest:
                time.sleep(self._rest * (time.thread_time() - began))
