"""What a piece has found, in a file that is whole at every moment and goes on where it ended."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen_jax.files import atomic
from qwen_jax.program import progress

Case = Callable[[], dict[str, Any]]
UNFINISHED = 75  # exit status: the same command goes on
STUCK = 76  # a case was cut off, and will be left out
_GRACE = 1.5  # the next case is expected to take as long as the longest so far, times this


class SkippedError(Exception):
    """A case that this device, or this machine, cannot run; the text says why."""


class Kept:
    """The cases of one piece, in <folder>/<piece>.json."""

    def __init__(self, folder: Path, piece: str):
        self.file = folder / f"{piece}.json"
        self.cases: dict[str, dict[str, Any]] = {}
        self.running: str | None = None
        if self.file.exists():
            found = json.loads(self.file.read_text("utf-8"))
            self.cases, self.running = found["cases"], found["running"]
        if self.running is not None:
            self.end({"skipped": "an earlier try of it did not end in time, or was killed"})

    def begin(self, name: str) -> None:
        self.running = name
        self._write()

    def end(self, found: dict[str, Any]) -> None:
        assert self.running is not None
        self.cases[self.running], self.running = found, None
        self._write()

    def _write(self) -> None:
        content = {"running": self.running, "cases": self.cases}
        atomic.write_text(self.file, json.dumps(content, indent=1) + "\n")


def run(kept: Kept, cases: Mapping[str, Case], minutes: float) -> int:
    """Measure what is not there yet while there is time; 0 if that was all, else UNFINISHED.

    A case that outlasts the minutes ends the process with STUCK.
    """
    began, longest = time.monotonic(), 0.0
    limit = 60 * minutes
    watch = threading.Timer(limit, _end)
    watch.daemon = True
    watch.start()
    try:
        with progress.working(kept.file.stem, len(cases), "cases") as task:
            for name, case in cases.items():
                if name in kept.cases:
                    task.skip(1)
                    continue
                start = time.monotonic()
                if longest and start - began + _GRACE * longest > limit:
                    return UNFINISHED
                kept.begin(name)
                kept.end(measured(case))
                longest = max(longest, time.monotonic() - start)
                task.advance()
    except KeyboardInterrupt:  # asked for: the case is measured again
        kept.running = None
        kept._write()
        raise
    finally:
        watch.cancel()
    return 0


def _end() -> None:
    """At once, also where a compiler or a device hears nothing; what was started ends, too."""
    with contextlib.suppress(OSError):  # Linux has this list
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    os._exit(STUCK)


def measured(case: Case) -> dict[str, Any]:
    """What a case finds, or why it finds nothing."""
    try:
        return case()
    except SkippedError as reason:
        return {"skipped": str(reason)}
    except Exception as error:
        words = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        small = "RESOURCE_EXHAUSTED" in words or "out of memory" in words.lower()
        return {"skipped" if small else "failed": words}
