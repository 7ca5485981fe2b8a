"""Batches on their way to the devices: each process makes and sends its own rows."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train.batches import Batches
from train.samples import Samples
from train.step import Batch, batch_sharding

FIELDS = ("tokens", "targets", "positions", "segments")


class Feed(Iterator[Batch]):
    """The batches of a run in turn, [A B T] over the devices of a mesh.

    division: A and B. The state says which batch comes next; set to one, it goes on exactly there.
    """

    def __init__(self, samples: Samples, mesh: Mesh, division: tuple[int, int], **order: Any):
        self._make = lambda rows: Batches(
            samples, batch=division[1], accumulation=division[0], rows=rows, **order
        )
        self._sharding: Any = batch_sharding(mesh)
        self.shape = (*division, samples.length)
        self._rows = self._own_rows()
        batches = self._make(self._rows)
        self.steps = batches.steps
        self._iterator = iter(batches)
        self.get_state, self.set_state = self._iterator.get_state, self._iterator.set_state

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        return Batch(**{name: self._put(getattr(batch, name)) for name in FIELDS})

    def names(self, step: int) -> tuple[str, ...]:
        """The samples of the step of this number, counted from 1, those of all processes."""
        return self._make(None)[step - 1].names

    def _own_rows(self) -> list[int]:
        """Those of the B rows that lie on this process's devices."""
        slices = self._sharding.addressable_devices_indices_map(self.shape).values()
        return sorted({row for index in slices if index for row in self._range(index)})

    def _range(self, index: tuple[slice, ...]) -> range:
        return range(*index[1].indices(self.shape[1]))

    def _put(self, own: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return own[:, [self._rows.index(row) for row in self._range(index)]]

        return jax.make_array_from_callback(self.shape, self._sharding, part)
