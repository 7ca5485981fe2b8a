"""A stop that all processes of a training agree on, after a step."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stop:
    """What SIGTERM and Ctrl-C ask for: a stop after a step that all processes agree on.

    Ctrl-C once more stops at once. In force inside `with`.
    """

    def __init__(self) -> None:
        self.asked = False
        self.alone = jax.process_count() == 1

    def __enter__(self) -> "Stop":
        # of several processes, jax watches each for SIGTERM
        signals = (signal.SIGINT, signal.SIGTERM) if self.alone else (signal.SIGINT,)
        self.before = {number: signal.signal(number, self._ask) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGINT:  # print cannot be interrupted by itself
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        if not self.alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop before this step; all processes ask, at every step."""
        if self.alone:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)
