"""Waiting for what must happen, on machines that are as busy as can be."""

import time
from collections.abc import Callable

PATIENCE = 240.0  # seconds; nothing that works takes so long


def until(happened: Callable[[], object], otherwise: str = "it did not happen") -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)
