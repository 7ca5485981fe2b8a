"""How far an evaluation is, for people."""

import sys
import time


class Bar:
    """What `tell` may be: how far a task is, how fast, how long it still takes."""

    def __init__(self) -> None:
        self._task, self._began, self._first, self._shown = "", 0.0, 0, 0.0

    def __call__(self, task: str, done: int, count: int) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if task != self._task:
            self._task, self._began, self._first, self._shown = task, now, done - 1, 0.0
        if done < count and now - self._shown < (0.2 if terminal else 15):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime((count - done) / max(rate, 1e-9)))
        line = f"{task} {done}/{count} questions, {rate:.3g} a second, {left} left"
        start, end = ("\r\x1b[K", "\n" if done == count else "") if terminal else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)
