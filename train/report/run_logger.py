"""What a run tells: a line on the screen, log.jsonl, who else wants to know, a last picture."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import numpy as np

from qwen_jax.files import atomic
from qwen_jax.files.sizes import size
from qwen_jax.program.progress import clock
from train.report import plot, speed

QUIET = 10.0  # seconds between lines where they cannot be overwritten
REFRESH = 0.1  # where they can
LOG = "log.jsonl"

Tell = Callable[[int, Mapping[str, float]], None]


class RunLogger:
    """Takes the measurements of each step and passes them on; only process 0 shows or writes.

    done: steps that an earlier run made; what the log holds beyond them is made again.
    work: floating-point operations a token. log_every: steps between records; those without a
    finite gradient, or with a held-out loss, are always recorded. tell: is told of each record,
    with its numbers by name.
    """

    def __init__(
        self, folder: Path, steps: int, done: int, work: float, log_every: int, tell: Tell
    ):
        self.folder, self.steps, self.log_every, self.tell = folder, steps, log_every, tell
        self.writes = jax.process_index() == 0
        self.work, peak = work, speed.peak(jax.devices()[0].device_kind)
        self.capacity = None if peak is None else peak * jax.device_count()
        self.mean, self.smoothed = plot.Mean(), math.nan
        self.pace, self.step_seconds = plot.Mean(), math.nan
        self.flow, self.rate = plot.Mean(), math.nan  # tokens a second
        self.clock: float | None = None  # when the step before ended, if that tells this one's time
        self.shown = -math.inf
        if not self.writes:
            return
        log = [record for record in plot.read_log(folder / LOG) if record["step"] <= done]
        lines = (json.dumps(record) + "\n" for record in log)
        atomic.write_text(folder / LOG, "".join(lines))
        for loss in losses(log):
            self.smoothed = self.mean.add(loss)
        self.log = (folder / LOG).open("a", encoding="utf-8", buffering=1)

    def step(self, step: int, metrics: dict[str, float], held_out: float | None = None) -> None:
        """Tell of a step that the devices have just finished."""
        now = monotonic()
        seconds = None if self.clock is None else now - self.clock
        self.clock = now
        if not self.writes:
            return
        record: dict[str, Any] = {"step": step} | {k: _finite(v) for k, v in metrics.items()}
        record |= self._speed(seconds, metrics["tokens"])
        if held_out is not None:
            record |= {"held_out_loss": _finite(held_out), "held_out_perplexity": _exp(held_out)}
        if record["loss"] is not None:
            self.smoothed = self.mean.add(record["loss"])
        if step % self.log_every == 0 or record["skipped"] or held_out is not None:
            self._record(record)
        self._show(record)

    def pause(self) -> None:
        """What comes now is no part of a step's time."""
        self.clock = None

    def close(self) -> None:
        """Draw the picture, and end the line that moves."""
        if not self.writes:
            return
        self.log.close()
        if sys.stderr.isatty() and self.shown > 0:
            print(file=sys.stderr)
        plot.draw(plot.read_log(self.folder / LOG), self.folder / "loss.png")

    def summary(self) -> str:
        """What the whole run came to, calls before this one too."""
        log = plot.read_log(self.folder / LOG) if self.writes else []
        words = [f"{self.steps} steps"]
        if found := losses(log):
            words += [f"loss {found[0]:.4f} at the first, {found[-1]:.4f} at the last"]
            words[-1] += f" (lately {self.smoothed:.4f} on average)" if found[10:] else ""
        if held := [record for record in log if record.get("held_out_loss") is not None]:
            loss, perplexity = held[-1]["held_out_loss"], held[-1]["held_out_perplexity"]
            words += [f"held-out loss {loss:.4f} (perplexity {perplexity or math.inf:.4g})"]
        if skipped := sum(record["skipped"] > 0 for record in log):
            words += [f"{skipped} without a finite gradient"]
        return ", ".join(words)

    def _speed(self, seconds: float | None, tokens: float) -> dict[str, float | None]:
        rate = None if seconds is None else tokens / seconds
        if seconds is not None and rate is not None:
            self.step_seconds, self.rate = self.pace.add(seconds), self.flow.add(rate)
        return {
            "seconds": seconds,
            "tokens_per_second": rate,
            "utilisation": None if rate is None else self._used(rate),
            "memory": speed.memory(),
        }

    def _used(self, rate: float) -> float | None:
        """The part of what the devices could do, if that is known."""
        return None if self.capacity is None else rate * self.work / self.capacity

    def _record(self, record: dict[str, Any]) -> None:
        self.log.write(json.dumps(record) + "\n")
        numbers = {name: value for name, value in record.items() if value is not None}
        self.tell(numbers.pop("step"), numbers)

    def _show(self, record: dict[str, Any]) -> None:
        terminal, now = sys.stderr.isatty(), monotonic()
        last = record["step"] == self.steps
        if now - self.shown < (REFRESH if terminal else QUIET) and not last:
            return
        self.shown = now
        line = "  ".join(self._words(record))
        start, end = ("\r\x1b[K", "") if terminal else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)

    def _words(self, record: dict[str, Any]) -> list[str]:
        words = [f"step {record['step']}/{self.steps}"]
        words += [f"loss {self.smoothed:.4f}"]
        if (held_out := record.get("held_out_loss")) is not None:
            words += [f"held out {held_out:.4f}"]
        if not math.isnan(self.rate):
            words += [f"{self.rate:,.0f} tokens/s"]
        if (used := self._used(self.rate)) is not None and not math.isnan(used):
            words += [f"{used:.0%} of the peak"]
        words += [size(record["memory"])]
        if not math.isnan(self.step_seconds) and record["step"] < self.steps:
            left = self.step_seconds * (self.steps - record["step"])
            words += [f"{clock(left)} left"]
        return words


def say(text: str) -> None:
    """A line of its own; on a terminal, in the place of the one that moves."""
    if jax.process_index() == 0:
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{clear}{text}", file=sys.stderr, flush=True)


def losses(log: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in log if record["loss"] is not None]


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


def _exp(loss: float) -> float | None:
    with np.errstate(over="ignore"):
        return _finite(float(np.exp(loss)))
