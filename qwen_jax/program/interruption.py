"""Ctrl-C ends a program within two seconds, whatever it computes.

Python hears a signal between two instructions of its own, which a compiler or a long step keep it
from. A thread hears it at once, and ends the process where Python has not by then. What is on the
disk is whole at any moment: it is written aside, and renamed.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

PATIENCE = 1.2  # seconds that Python has to end by itself
MOMENT = 0.2  # seconds that it has to do something else
CODE = 130

_watch: int | None = None  # what signals are written to, where a thread reads them
_held: list["Held | Caught"] = []
_order = threading.Lock()
_settled = 0  # presses that Python has caught, before the thread heard of them
_asked = threading.Event()
_ending = threading.Lock()
advice = ""  # what a program adds to `interrupted`


def watch() -> None:
    """From now on Ctrl-C ends this process in time. Where it is ignored (nohup) it stays so."""
    global _watch
    if _watch is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        heard, _watch = os.pipe()
        os.set_blocking(_watch, False)
        signal.signal(signal.SIGINT, _interrupt)
        threading.Thread(target=_listen, args=(heard,), daemon=True).start()
    rearm()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not in an import: extension modules crash, or print it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            end()
        frame = frame.f_back
    raise KeyboardInterrupt


def rearm() -> None:
    """After an event loop, which listens to signals itself and then leaves nobody to."""
    if _watch is not None:
        signal.set_wakeup_fd(_watch, warn_on_full_buffer=False)


def asked() -> bool:
    """Whether the user wants the end, whatever became of the KeyboardInterrupt."""
    return _watch is not None and _asked.wait(0.05)  # the thread may be late


def end() -> NoReturn:
    """Say so, and end: at once, since threads that still compute make Python's own end crash."""
    if _watch is not None:
        _ending.acquire()  # for good: it is said once
    if sys.stderr.isatty():  # no half of a bar, and the cursor that it hid
        print("\r\x1b[K\x1b[?25h", end="", file=sys.stderr)
    elif sys.stdout.isatty():
        print(file=sys.stderr)
    print("interrupted" + (f"; {advice}" if advice else ""), file=sys.stderr, flush=True)
    if _watch is None:
        sys.exit(CODE)
    os._exit(CODE)


class Held:
    """A Ctrl-C that is something else than the end: `pressed` is called, once for each.

    By Python, or where that cannot within a moment by the thread. The program ends where it
    returns True.
    """

    def __init__(self, pressed: Callable[[], bool]):
        self._pressed, self._lock = pressed, threading.Lock()
        self._by_python = self._by_thread = 0  # presses that the other has yet to hear of

    def python(self, number: int, frame: FrameType | None) -> None:
        with self._lock:
            if self._by_thread:
                self._by_thread -= 1
                return
            self._by_python += 1
        if self._pressed():
            if _watch is not None:
                end()
            raise KeyboardInterrupt

    def thread(self) -> None:
        until = time.monotonic() + MOMENT
        while time.monotonic() < until:
            with self._lock:
                if self._by_python:
                    self._by_python -= 1
                    return
            time.sleep(0.01)
        with self._lock:
            self._by_thread += 1
        if self._pressed():
            end()


@contextmanager
def held(pressed: Callable[[], bool]) -> Iterator[None]:
    """Inside, Ctrl-C calls `pressed`; see Held."""
    mine = Held(pressed)
    before = signal.signal(signal.SIGINT, mine.python)
    _held.append(mine)
    try:
        yield
    finally:
        _held.remove(mine)
        signal.signal(signal.SIGINT, before)


class Caught:
    """A Ctrl-C whose KeyboardInterrupt somebody catches; one more ends what does not hear it."""

    def __init__(self) -> None:
        self._told = False
        self.heard = False  # by the thread

    def thread(self) -> None:
        if self._told:
            end()
        time.sleep(PATIENCE)
        if self in _held:
            self._told = True
            print("\nstopping when this is computed; Ctrl-C again leaves", file=sys.stderr)


@contextmanager
def caught() -> Iterator[None]:
    """Inside, KeyboardInterrupt is no end of the program; see Caught."""
    global _settled
    mine, caught = Caught(), False
    rearm()
    _held.append(mine)
    try:
        yield
    except KeyboardInterrupt:
        caught = True
        raise
    finally:
        with _order:
            _held.remove(mine)
            _settled += caught and not mine.heard and _watch is not None


def _listen(heard: int) -> None:
    while True:
        for number in os.read(heard, 1):
            if number == signal.SIGINT:
                _press()


def _press() -> None:
    global _settled
    with _order:
        if _settled:
            _settled -= 1
            return
        innermost = _held[-1] if _held else None
        if isinstance(innermost, Caught):
            innermost.heard = True
    if innermost is not None:
        innermost.thread()
    else:
        _asked.set()
        threading.Thread(target=_insist, daemon=True).start()


def _insist() -> None:
    time.sleep(PATIENCE)
    end()
