"""Step after step: measured, saved, and stopped where it should be."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import jax
import numpy as np

from qwen_jax.program import progress
from train.checkpoints import Checkpoints
from train.feed import Feed
from train.loss_scale import BACKOFF, FLOOR
from train.report.run_logger import RunLogger, say
from train.settings import TrainConfig
from train.step import Batch, Metrics, Trainer, TrainState
from train.stop import Stop


class NotFinite(ValueError):
    """Too many steps in a row had no finite gradient, or one with the least float16 loss scale."""


class Loop:
    """A run between two of its steps.

    held_out: makes the batches to measure; None if there are none.
    """

    def __init__(
        self,
        settings: TrainConfig,
        trainer: Trainer,
        feed: Feed,
        held_out: Callable[[], Iterable[Batch]] | None,
        checkpoints: Checkpoints,
    ):
        self.settings, self.trainer, self.feed = settings, trainer, feed
        self.held_out, self.checkpoints = held_out, checkpoints
        self.saved = self.done = checkpoints.latest() or 0
        if self.done:
            trainer.forget()
            self.state = self.restore(self.done)
        else:
            self.state = trainer.start()
        self.unread: tuple[int, Metrics] | None = None

    def run(self, watch: RunLogger) -> bool:
        """Make the steps that are left; False if asked to stop before the last. All is saved."""
        begun = self.done
        with Stop(idle=lambda: self.done == begun) as stop:
            for step in range(self.done + 1, self.feed.steps + 1):
                if stop.reached(step):
                    break
                with self._first() if self.done == begun else nullcontext():
                    self.state, metrics = self.trainer.step(self.state, next(self.feed))
                self._read(watch)  # of the step before: the devices are busy with this one
                self.unread, self.done = (step, metrics), step
                self._measure_and_save(watch)
            self._read(watch)
            if self.saved < self.done:
                self._save(None)
        return self.done == self.feed.steps

    @contextmanager
    def _first(self) -> Iterator[None]:
        """The step that is compiled, and waited for, so that its bar ends when it does."""
        with progress.working("compiling the step, and making the first"):
            yield
            jax.block_until_ready(self.state)

    def restore(self, step: int) -> TrainState:
        """The state after a step; the feed goes on behind it."""
        like, _, _ = self.trainer.abstract(self.feed.shape)
        state, position = self.checkpoints.restore(step, like)
        if not isinstance(position, dict) or {state.step.item(), position.get("step")} != {step}:
            raise ValueError(
                f"{self.checkpoints.folder / str(step)} is damaged: it is not of step {step}; "
                "delete it to go on from the one before"
            )
        self.feed.set_state(position)
        return state

    def _measure_and_save(self, watch: RunLogger) -> None:
        step, last = self.done, self.done == self.feed.steps
        due = last or step % self.settings.measure_every == 0
        measures = self.held_out if due else None
        saves = last or step % self.settings.save_every == 0
        if not (measures or saves):
            return
        watch.pause()
        loss = self._measure(measures()) if measures else None
        self._read(watch, loss)  # before it is saved: the log is never behind a checkpoint
        if saves:
            self._save(loss)
        watch.pause()

    def _measure(self, batches: Iterable[Batch]) -> float:
        """The mean loss over all held-out targets."""
        with progress.working("measuring held-out data"):
            sums = [self.trainer.score(self.state, batch) for batch in batches]
            sums = jax.device_get(sums)
        loss, targets = np.asarray(sums, np.float64).sum(axis=0)
        return float(loss / max(targets, 1))

    def _save(self, held_out: float | None) -> None:
        self.checkpoints.save(self.done, self.state, self.feed.get_state(), held_out)
        self.saved = self.done

    def _read(self, watch: RunLogger, held_out: float | None = None) -> None:
        """Wait for the metrics of the latest step that is not told of yet."""
        if self.unread is None:
            return
        (step, metrics), self.unread = self.unread, None
        told = vars(jax.device_get(metrics)).items()
        values = {name: value.item() for name, value in told if value is not None}
        values |= {name: int(values[name]) for name in ("targets", "tokens", "skipped")}
        watch.step(step, values, held_out)
        if values["skipped"]:
            self._judge(step, values)

    def _judge(self, step: int, values: dict[str, float]) -> None:
        """Of a step that changed nothing: whether the run can go on."""
        failures, scale = int(values["skipped"]), values.get("loss_scale")
        if scale == FLOOR:
            heading = (
                f"step {step} had no finite gradient at loss scale {scale:g}, the least there is; "
                "float16 has diverged, where bfloat16 may not"
            )
            raise NotFinite(self._blame(heading, step, failures))
        if scale is not None and math.isfinite(values["loss"]):  # a smaller one may mend it
            lower = scale * BACKOFF
            say(f"step {step} overflows at loss scale {scale:g} and changes nothing; now {lower:g}")
            return
        say(f"step {step} had no finite gradient; it changes nothing")
        if failures >= self.settings.max_failures:
            heading = f"{failures} steps in a row had no finite gradient and changed nothing"
            raise NotFinite(self._blame(heading, step, failures))

    def _blame(self, heading: str, step: int, failures: int) -> str:
        steps = range(step - failures + 1, step + 1)[-self.settings.max_failures :]
        newest = f"step {self.saved} is saved" if self.saved else "nothing is saved"
        advice = (
            f"{heading}; {newest}. "
            "Look at their samples, or begin again with a lower --learning-rate and another --out:"
        )
        samples = (f"step {n}: {', '.join(self.feed.names(n))}" for n in steps)
        return "\n  ".join([advice, *samples])
