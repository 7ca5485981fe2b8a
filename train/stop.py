"""A stop that all processes of a training agree on, after a step."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

import jax
from jax.experimental import multihost_utils

from qwen_jax.program import interruption


class Stop:
    """What SIGTERM and Ctrl-C ask for: a stop after a step that all processes agree on.

    Ctrl-C once more stops at once, and so does the first while `idle`: nothing is made yet that
    could be lost. In force inside `with`.
    """

    def __init__(self, idle: Callable[[], bool] = lambda: False) -> None:
        self.asked = False
        self.alone = jax.process_count() == 1
        self._idle, self._inside = idle, ExitStack()

    def __enter__(self) -> "Stop":
        self._inside.enter_context(interruption.held(self._pressed))
        if self.alone:  # of several processes, jax watches each for SIGTERM
            before = signal.signal(signal.SIGTERM, self._ask)
            self._inside.callback(signal.signal, signal.SIGTERM, before)
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.close()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _pressed(self) -> bool:
        if self.asked or (self.alone and self._idle()):
            return True
        self.asked = True  # print cannot be interrupted by itself
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        if not self.alone:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    def reached(self, step: int) -> bool:
        """Whether to stop before this step; all processes ask, at every step."""
        if self.alone:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)
