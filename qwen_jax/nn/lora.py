"""Low-rank adapters in a linear layer's place (LoRA, arXiv 2106.09685).

An adapter on disk is a PEFT folder; `peft` reads and writes those.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qwen_jax.nn.model import LINEAR, Linear, LinearLayer, Qwen
from qwen_jax.nn.sums import matmul
from qwen_jax.nn.tree import map_layers, named_layers


@dataclass(frozen=True)
class Rows:
    """Some of a fused layer's outputs: start to stop of each of `runs` equal runs of rows."""

    runs: int
    start: int
    stop: int


@nnx.dataclass
class Delta(nnx.Module):
    """y = scale * b @ a @ dropout(x): what an adapter adds to one projection."""

    a: Array = nnx.data()  # [R in]
    b: Array = nnx.data()  # [out R], the outputs in our order
    keys: Array | None = nnx.data()  # [B] draw this step's dropout; None: nothing is dropped
    rows: Rows | None = nnx.static()  # where in a fused layer the outputs belong; None: all of it
    scale: float = nnx.static()
    dropout: float = nnx.static()

    def __call__(self, x: Array) -> Array:
        """x [... in] -> float32 [... out]."""
        inner = matmul(dropout(x, self.dropout, self.keys), self.a.astype(x.dtype))
        inner = checkpoint_name(inner.astype(x.dtype), LINEAR)
        return self.scale * matmul(inner, self.b.astype(x.dtype))

    def weight(self) -> Array:
        """float32 [out in], what it adds to a kernel's rows."""
        return self.scale * jnp.dot(
            self.b.astype(jnp.float32), self.a.astype(jnp.float32), precision="highest"
        )


@nnx.dataclass
class Deltas(nnx.Module):
    """What several adapters add to one projection, where each row of the input follows one or none.

    Their matrices lie beside each other: one product serves all rows, and of it a row keeps its own
    adapter's part. It costs what one adapter of all their ranks together does, whatever the batch.
    """

    a: Array = nnx.data()  # [R in], R the ranks of all
    b: Array = nnx.data()  # [out R]
    scales: Array = nnx.data()  # float32 [N R]: by number, 0 at ranks that are not the adapter's
    chosen: Array | None = nnx.data()  # [B] each row's adapter; see `select_adapters`
    rows: Rows | None = nnx.static()

    def __call__(self, x: Array) -> Array:
        """x [B T in] -> float32 [B T out]."""
        assert self.chosen is not None, "several adapters, none chosen: see select_adapters"
        scales = self.scales[self.chosen][:, None]  # [B 1 R]
        inner = scales * matmul(x, self.a.astype(x.dtype))
        inner = jnp.where(scales == 0, 0, inner)  # what is not finite stays its own
        return matmul(inner.astype(x.dtype), self.b.astype(x.dtype))


@nnx.dataclass
class LoraLinear(LinearLayer):
    """A linear layer and what adapters add to it. A fused layer may have one for each part."""

    base: Any  # Linear, or another precision's layer
    deltas: tuple[Any, ...] = nnx.data()  # each a Delta, or each the Deltas of several adapters

    def float32(self, x: Array) -> Array:
        y = self.base.float32(x)
        for delta in self.deltas:
            y = y + spread(delta(x), delta.rows, y.shape[-1])
        return y

    def fused(self) -> Linear:
        """One layer that does the same, in the base's dtype, rounded once."""
        kernel = self.base.kernel.astype(jnp.float32)
        for delta in self.deltas:
            kernel = kernel + spread(delta.weight().T, delta.rows, kernel.shape[0]).T
        return Linear(kernel.astype(self.base.kernel.dtype), self.base.bias)


def spread(y: Array, rows: Rows | None, size: int) -> Array:
    """y [... out] at its places among `size` outputs, zeros at the others."""
    if rows is None:
        return y
    run = size // rows.runs
    y = y.reshape(*y.shape[:-1], rows.runs, rows.stop - rows.start)
    y = jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(rows.start, run - rows.stop)])
    return y.reshape(*y.shape[:-2], size)


def dropout(x: Array, rate: float, keys: Array | None) -> Array:
    """Each number of x [B ...] zero with probability `rate`, to 2^-32, the others enlarged."""
    if keys is None or rate == 0:
        return x
    drawn = jax.vmap(lambda key: _bits(key, x.shape[1:]))(keys)
    least = jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(drawn < least, 0, x / (1 - rate)).astype(x.dtype)


def _bits(key: Array, shape: tuple[int, ...]) -> Array:
    """32 random bits for each place, of the key and the place alone.

    JAX's own generator is fit for secrets, and took a quarter of a step of LoRA on a CPU. This is
    some instructions a number, in whatever reads it.
    """
    a, b = jax.random.key_data(key)
    place = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _mixed(_mixed(place + a) ^ b)


def _mixed(x: Array) -> Array:
    """A permutation of uint32 in which each bit changes half of all (C. Wellons' lowbias32)."""
    x = (x ^ x >> 16) * jnp.uint32(0x7FEB352D)
    x = (x ^ x >> 15) * jnp.uint32(0x846CA68B)
    return x ^ x >> 16


def fuse(params: Qwen) -> Qwen:
    """A plain network that does what params does with its adapters.

    Raises ValueError over quantised layers.
    """
    fused = jax.jit(LoraLinear.fused)  # else every step of it would hold a float32 kernel

    def change(name: str, x: LoraLinear) -> Linear:
        if not isinstance(x.base, Linear):
            raise ValueError(
                f"{name} is quantised, and nothing can be merged into integers; keep the adapter "
                "beside it, or fuse it with the model that is not, and quantise that"
            )
        return fused(x)

    return map_layers(change, params, LoraLinear)


def select_adapters(params: Qwen, chosen: Array) -> Qwen:
    """params whose rows follow the adapters `chosen` [B], by number; 0 is the bare network."""

    def change(_: str, layer: LoraLinear) -> LoraLinear:
        if not any(isinstance(deltas, Deltas) for deltas in layer.deltas):
            return layer
        told = tuple(dataclasses.replace(x, chosen=_for_each(x, chosen)) for x in layer.deltas)
        return dataclasses.replace(layer, deltas=told)

    return map_layers(change, params, LoraLinear)


def _for_each(deltas: Deltas, chosen: Array) -> Array:
    """The same for every layer, where these are of several: a [L R in]."""
    stacked = deltas.a.shape[:-2]
    return jnp.broadcast_to(chosen, (*stacked, *chosen.shape))


def with_dropout(params: Qwen, keys: Array) -> Qwen:
    """params whose adapters drop what jax.random `keys` say, one for each row [B] of the input.

    A row's draw depends on its key alone, not on the rows beside it.
    """
    layers = named_layers(params, LoraLinear).values()
    deltas: list[Delta] = [delta for layer in layers for delta in layer.deltas]
    counts = [len(delta.a) if delta.a.ndim == 3 else 1 for delta in deltas]  # stacked: [L R in]
    own = jax.vmap(jax.random.split, (0, None), 1)(keys, sum(counts))  # [deltas and layers, B]
    ends = itertools.accumulate(counts)
    drawn = iter(own[end - count : end] for count, end in zip(counts, ends, strict=True))

    def draw(delta: Delta) -> Delta:
        rows = next(drawn)
        return dataclasses.replace(delta, keys=rows if delta.a.ndim == 3 else rows[0])

    draw_all = lambda _, layer: dataclasses.replace(layer, deltas=tuple(map(draw, layer.deltas)))
    return map_layers(draw_all, params, LoraLinear)
