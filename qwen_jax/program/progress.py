"""What a program is at, for whoever waits: on a terminal a bar that moves, elsewhere lines.

Only programs show it (`begin`); a library call is quiet. What is over in a moment shows nothing.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qwen_jax.files.sizes import size

BAR_AFTER, LINE_AFTER = 0.3, 1.5  # seconds
_tasks: list["Task"] = []
_write: Callable[[str], object] | None = None  # None: quiet


def begin(write: Callable[[str], object] | None = None) -> None:
    """Show from now on. write: where lines go, as a log; default, stderr, as a bar if it can."""
    global _write
    _write = write or _print


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Task:
    """Something that takes time. total: how many units it has, if that is known.

    unit: "B" for bytes, or a plural.
    """

    def __init__(self, what: str, total: float | None, unit: str):
        self.what, self.total, self.unit = what, total, unit
        self.done, self.skipped, self.began = 0.0, 0.0, time.monotonic()
        self.over = threading.Event()

    def advance(self, count: float = 1) -> None:
        self.done += count

    def skip(self, count: float) -> None:
        """What was done before, and says nothing of the speed."""
        self.done += count
        self.skipped += count

    def words(self) -> list[str]:
        """How far it is, how fast, and the time left; without a total the time so far."""
        passed = time.monotonic() - self.began
        if self.total is None:
            return [clock(passed)]
        words = [f"{self._count(self.done)} of {self._count(self.total)} {self._name}".rstrip()]
        if made := self.done - self.skipped:
            rate = made / max(passed, 1e-9)
            each = f"{size(rate)}/s" if self.unit == "B" else f"{rate:,.3g} {self.unit}/s"
            words += [each, f"{clock(max(0, self.total - self.done) / rate)} left"]
        else:
            words += [clock(passed)]
        return words

    @property
    def _name(self) -> str:
        return "" if self.unit == "B" else self.unit

    def _count(self, number: float) -> str:
        return size(number) if self.unit == "B" else f"{number:,.0f}"

    def show(self) -> None:
        """Until it is over, in a thread of its own."""
        if _write is _print and sys.stderr.isatty():
            if not self.over.wait(BAR_AFTER):
                self._draw()
            return
        pause = LINE_AFTER
        while not self.over.wait(pause):
            assert _write is not None
            _write(f"{self.what}: {', '.join(self.words())} …")
            pause = min(10.0, max(LINE_AFTER, (time.monotonic() - self.began) / 10))

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        texts = [TextColumn(f"{{task.{name}}}") for name in ("description", "fields[words]")]
        columns = (SpinnerColumn(), texts[0], BarColumn(20), texts[1])
        quiet: Any = {"redirect_stdout": False, "redirect_stderr": False, "auto_refresh": False}
        console = Console(stderr=True, highlight=False)
        with Progress(*columns, console=console, transient=True, **quiet) as bar:
            number = bar.add_task(self.what, total=self.total, words="")
            while not self.over.wait(0.1):
                told = ", ".join(self.words())
                bar.update(number, completed=self.done, description=self.what, words=told)
                bar.refresh()


@contextmanager
def working(what: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
    """Show that this takes its time; `advance` the task as it goes."""
    task = Task(what, total, unit)
    showing = threading.Thread(target=task.show, daemon=True)
    if shown := _write is not None and _first():
        showing.start()
    _tasks.append(task)
    try:
        yield task
    finally:
        _tasks.remove(task)
        task.over.set()
        if shown:
            showing.join()


def advance(count: float) -> None:
    """Of what a caller is at, whoever that is."""
    if _tasks:
        _tasks[-1].advance(count)


def _first() -> bool:
    """Of several processes one shows it; asked so that no device is woken up."""
    jax = sys.modules.get("jax")
    if jax is None or "qwen_jax.distributed" not in sys.modules:
        return True
    return not (jax.distributed.is_initialized() and jax.process_index())


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
