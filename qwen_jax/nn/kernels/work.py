"""The list of work of the TPU's attention kernel: a step for every block that has to be seen."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from qwen_jax.nn.kernels.integers import div, rem


class Work:
    """What each step does. A row's steps: its blocks, then the tiles that it writes."""

    def __init__(self, length: int, page: int, part: int, tile: int, room: int):
        self.length, self.page, self.part, self.tile, self.room = length, page, part, tile, room

    def plan(self, table: Array, starts: Array, ends: Array) -> tuple[tuple[Array, ...], Array]:
        """The row of every step, the first step of every row, table, starts, ends; the count."""
        most = len(ends) * (self.room // self.part + (self.length - 1) // self.tile + 2)
        _, blocks, first, last = self.row(starts, ends)
        counts = jnp.where(ends > 0, blocks + last - first + 1, 0)
        until = jnp.cumsum(counts, dtype=jnp.int32)
        steps = jnp.arange(most, dtype=jnp.int32)
        rows = jnp.sum(steps[:, None] >= until, axis=1, dtype=jnp.int32)
        rows = jnp.minimum(rows, len(ends) - 1)
        return (rows, until - counts, table, starts, ends), jnp.maximum(until[-1], 1)

    def row(self, start: Array, end: Array) -> tuple[Array, Array, Array, Array]:
        """End of what is seen and stored, blocks, first and last tile."""
        limit = jnp.minimum(jnp.minimum(end, start + self.length), self.room)
        blocks = div(limit + self.part - 1, self.part)
        first = jnp.minimum(start, self.room - 1)
        last = jnp.maximum(limit - 1, first)
        return limit, blocks, div(first, self.tile), div(last, self.tile)

    def at(self, i: Array, s: Any) -> tuple[Array, ...]:
        """Row, number of the row's step, how many are blocks, the block and the tile in use."""
        rows, begins, _, starts, ends = s
        row = rows[i]
        _, blocks, first, last = self.row(starts[row], ends[row])
        step = i - begins[row]
        tile = jnp.minimum(first + jnp.maximum(step - blocks, 0), last)
        block = jnp.where(step < blocks, step, div(tile * self.tile, self.part))
        return row, step, blocks, block, tile

    def block(self, i: Array, s: Any, axes: int) -> tuple[Any, ...]:
        row, _, _, block, _ = self.at(i, s)
        parts = self.page // self.part
        return s[2][row, div(block, parts)], 0, rem(block, parts), *[0] * (axes - 3)

    def written(self, i: Array, s: Any, unit: int, axes: int) -> tuple[Any, ...]:
        row, *_, tile = self.at(i, s)
        place = tile * self.tile
        return (
            s[2][row, div(place, self.page)],
            0,
            div(rem(place, self.page), unit),
            *[0] * (axes - 3),
        )
