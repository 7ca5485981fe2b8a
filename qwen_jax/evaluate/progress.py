"""How far an evaluation is, for people."""

import sys
import time


class Bar:
    """What `tell` may be: how far a task is, how fast, how long it still takes.

    A task's first call says where it begins.
    """

    def __init__(self) -> None:
        self._task, self._began, self._first, self._shown = "", 0.0, 0, 0.0

    def __call__(self, task: str, done: int, count: int) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        begins = task != self._task
        if begins:
            self._task, self._began, self._first = task, now, done
        elif done < count and now - self._shown < (0.2 if terminal else 15):
            return
        self._shown = now
        line = f"{task} {done}/{count} questions"
        if done > self._first and now > self._began:
            rate = (done - self._first) / (now - self._began)
            line += f", {rate:.3g} a second, {_clock((count - done) / rate)} left"
        start, end = ("\r\x1b[K", "\n" if done == count else "") if terminal else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"
