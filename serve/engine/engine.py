"""The thread that keeps the device busy."""

import logging
import threading
import time
from typing import Any, Protocol

from serve.engine.metrics import Metrics
from serve.engine.operations import Operation, Result, Update
from serve.engine.request import Request
from serve.engine.scheduler import Scheduler
from serve.engine.turn import Turn

_PAUSE = 0.001  # seconds, so that others get the lock
_FAILURES = 3  # in a row, after which the device is given up

log = logging.getLogger("serve.engine")


class Device(Protocol):
    """What an engine needs of a runner."""

    def warm(self) -> None: ...
    def reset(self) -> None: ...
    def close(self) -> None: ...
    def run(self, operations: list[Operation]) -> list[Any]: ...
    def read(self, operations: list[Operation], outputs: list[Any]) -> list[Result | None]: ...


class Engine:
    """Turns of the schedule, run one ahead of what the host has read.

    While the device computes one turn, the host passes on the tokens of the turn before and
    decides on the next.
    """

    def __init__(self, device: Device, schedule: Scheduler, metrics: Metrics):
        self._device, self._schedule, self.metrics = device, schedule, metrics
        self._lock = threading.Condition()
        self._stopping = False
        self._failures = 0  # since the last turn that went well
        self.alive = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        pages = lambda: schedule.tables.pages
        for name, text, read in (
            ("requests_running", "Requests in a slot", lambda: schedule.occupied),
            ("requests_waiting", "Requests in the queue", lambda: schedule.waiting),
            ("cache_usage", "Part of the pages that requests hold", lambda: pages().usage),
            ("preemptions", "Answers that gave their pages up", lambda: schedule.preemptions),
            ("read_prompt_tokens", "Prompt tokens read", lambda: schedule.read_tokens),
            ("shared_prompt_tokens", "Of them, found in pages", lambda: schedule.shared_tokens),
            ("drafts", "Drafts verified", lambda: schedule.drafts[0]),
            ("draft_tokens", "Tokens of drafts", lambda: schedule.drafts[1]),
            ("accepted_tokens", "Of them, those that held", lambda: schedule.drafts[2]),
        ):
            metrics.watch(name, text, read)

    def start(self) -> None:
        self.alive = True
        self._thread.start()

    def stop(self) -> None:
        """End what is under way and the thread."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._device.close()

    @property
    def busy(self) -> bool:
        return self._schedule.busy

    def submit(self, requests: list[Request]) -> None:
        """Queue all of them or, raising QueueFull, none."""
        with self._lock:
            if not self.alive:
                raise RuntimeError("the engine does not run")
            queued: list[Request] = []
            try:
                for request in requests:
                    self._schedule.submit(request)
                    queued.append(request)
            except Exception:
                for request in queued:
                    self._schedule.cancel(request)
                raise
            self._lock.notify()

    def cancel(self, request: Request, finish: str) -> None:
        """Free its slot at once; nothing happens to a request that has ended."""
        with self._lock:
            self._schedule.cancel(request, finish)
            self._lock.notify()

    # --- the thread ----------------------------------------------------------------------------
    def _work(self) -> None:
        while not self._stopping and self._failures < _FAILURES:
            try:
                self._loop()
            except Exception:
                log.exception("the engine failed; requests in slots are lost")
                self._failures += 1
                self.metrics.failures.inc()
                self._recover()
        with self._lock:
            self.alive = False
            self._end_all()

    def _recover(self) -> None:
        try:
            with self._lock:
                self._schedule.fail()
            self._device.reset()
        except Exception:
            log.exception("the device cannot be set up again")
            self._failures = _FAILURES

    def _end_all(self) -> None:
        self._schedule.fail()
        while len(self._schedule.queue):
            request = self._schedule.queue.take()
            request.finish = "error"
            request.emit(Update(finish="error"))

    def _loop(self) -> None:
        """Turn by turn; the results of one are read after the next has been started."""
        under_way: tuple[Turn, list[Any]] | None = None
        while True:
            with self._lock:
                while not (self._schedule.busy or under_way or self._stopping):
                    self._lock.wait()
                if self._stopping:
                    return
                turn = self._schedule.next()
            if not turn.operations and under_way is None:
                time.sleep(_PAUSE)  # all wait for their grammars
            started = self._device.run(turn.operations) if turn.operations else []
            if under_way is not None:
                self._read(*under_way)
            under_way = (turn, started) if turn.operations else None

    def _read(self, turn: Turn, outputs: list[Any]) -> None:
        """Pass on what each operation gave as it ends: first tokens before the step behind them."""
        for operation, readers, output in zip(turn.operations, turn.readers, outputs, strict=True):
            results = self._device.read([operation], [output])
            with self._lock:
                self._schedule.take(Turn([operation], [readers]), results)
        self._failures = 0
