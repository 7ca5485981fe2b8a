"""Batches of packed rows: the same on any number of processes, and again after a stop."""

import bisect
import functools
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from qwen_jax.data.examples import IGNORED
from qwen_jax.files.strict_json import shown
from train.packing import plan
from train.samples import Samples

AHEAD = 16  # batches made before they are asked for


@dataclass(frozen=True)
class HostBatch:
    """One step, int32 [A B T]: A times B rows of T tokens.

    targets: the label of the next token of the same sample, IGNORED behind its last.
    positions: from 0 in every sample. segments: 1, 2, … the samples of a row, 0 padding.
    names: the samples in it, for people.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    names: tuple[str, ...]


class Batches:
    """The batches of a run by number of step; iterate to have them made ahead, in threads.

    batch: rows of the whole run that one pass holds, accumulation: passes that one step sums.
    rows: those of the `batch` rows that this process makes; by default all.
    epochs or steps: how long; half an epoch is half its rows. The rows of consecutive epochs follow
        one another, and empty ones fill the last step.
    seed: shuffles samples and rows anew in every epoch; None keeps the order of the data.
    pack: several samples a row where they fit.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch: int,
        accumulation: int = 1,
        rows: Sequence[int] | None = None,
        epochs: float | None = None,
        steps: int | None = None,
        seed: int | None = 42,
        pack: bool = True,
    ):
        if (epochs is None) == (steps is None):
            raise ValueError(f"got epochs {epochs} and steps {steps}, wanted one of the two")
        counts = {"batch": batch, "accumulation": accumulation, "steps": steps}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"got {name} {value}, wanted 1 or more")
        if epochs is not None and not 0 < epochs < math.inf:
            raise ValueError(f"got epochs {epochs}, wanted more than 0")
        if seed is not None and seed < 0:
            raise ValueError(f"got seed {seed}, wanted 0 or more")
        self.rows = range(batch) if rows is None else rows
        assert all(row in range(batch) for row in self.rows)
        self._samples, self._batch, self._accumulation = samples, batch, accumulation
        self._plan = functools.lru_cache(maxsize=2)(
            lambda epoch: plan(samples.lengths, samples.length, pack=pack, seed=seed, epoch=epoch)
        )
        self._starts = self._count_rows(epochs, (steps or 0) * accumulation * batch)
        self.steps = steps or -(-self._starts[-1] // (accumulation * batch))
        told = (samples.digest, accumulation * batch, seed, pack)
        self.digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> HostBatch:
        if not 0 <= step < self.steps:
            raise IndexError(f"got step {step} of {self.steps}")
        shape = (self._accumulation, len(self.rows), self._samples.length)
        tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
        targets, names = np.full(shape, IGNORED, np.int32), []
        for part, index in np.ndindex(shape[:2]):
            row = (step * self._accumulation + part) * self._batch + self.rows[index]
            end = 0
            for segment, sample in enumerate(self._samples_of(row), 1):
                ids, labels = self._samples[sample]
                start, end = end, end + len(ids)
                tokens[part, index, start:end] = ids
                targets[part, index, start : end - 1] = labels[1:]
                positions[part, index, start:end] = np.arange(len(ids))
                segments[part, index, start:end] = segment
                names.append(self._samples.name(sample))
        return HostBatch(tokens, targets, positions, segments, tuple(names))

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self)

    def _samples_of(self, row: int) -> list[int]:
        """The samples of a row of the run; none behind the last epoch."""
        if row >= self._starts[-1]:
            return []
        epoch = bisect.bisect_right(self._starts, row) - 1
        return self._plan(epoch)[row - self._starts[epoch]]

    def _count_rows(self, epochs: float | None, wanted: int) -> list[int]:
        """Where the rows of each epoch begin, and the last end: so many epochs, or as it takes."""
        starts = [0]
        left = math.inf if epochs is None else epochs
        while left > 0 and (epochs is not None or starts[-1] < wanted):
            rows = len(self._plan(len(starts) - 1))
            starts.append(starts[-1] + math.ceil(min(left, 1) * rows))
            left -= 1
        return starts


class BatchIterator(Iterator[HostBatch]):
    """Batches in turn. Its state is a few bytes of JSON; set to one, it goes on exactly there."""

    def __init__(self, batches: Batches):
        self._digest, self._steps = batches.digest, batches.steps
        threads = min(AHEAD, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD)
        self._inner = iter(grain.MapDataset.source(batches).to_iter_dataset(options))

    def __next__(self) -> HostBatch:
        return next(self._inner)

    def get_state(self) -> dict[str, Any]:
        return {"step": self._inner.get_state()["next_index"], "data": self._digest}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the state of other data, or of other settings that order them."""
        if state.keys() != {"step", "data"} or type(state["step"]) is not int:
            raise ValueError(f"got {shown(state)}, wanted the place in the data of a saved run")
        if state["data"] != self._digest:
            raise ValueError(
                "the saved run had other data, length, labels, seed, packing or rows a step; "
                "resume it with the same, or begin a new one"
            )
        if not 0 <= state["step"] <= self._steps:
            raise ValueError(f"got step {state['step']} of a saved run, this one has {self._steps}")
        self._inner.set_state({"next_index": state["step"]})
