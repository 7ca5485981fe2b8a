"""Attention over keys and values laid out [B K S H], and which form of it runs where."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

MASKED = -1e30  # finite, so that a query without any key gives numbers and not NaN
_QUERY_BLOCK = 512  # queries scored at once: bounds the [K G T S] scores of a long prefill


class Stored(Protocol):
    """Keys or values [B K S H], key s being the one at position s; see cache.Store."""

    @property
    def data(self) -> Array: ...

    @property
    def scale(self) -> Array | None:
        """[B K S] float32, the factor of int8 data."""


def attend(query: Array, key: Stored, value: Stored, positions: Array) -> Array:
    """Every query [B T K G H] sees the keys up to its own position [B T]; -> [B T K G H]."""
    length = query.shape[1]
    if length == 1:
        form = jax.lax.platform_dependent
        return form(query, key, value, positions, tpu=_eight_rows, default=_attend)
    if length <= _QUERY_BLOCK or length % _QUERY_BLOCK:
        return _attend(query, key, value, positions)
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, _QUERY_BLOCK, *x.shape[2:]), 1, 0)
    block = lambda xs: _attend(xs[0], key, value, xs[1])
    y = jax.lax.map(block, (split(query), split(positions)))
    return jnp.moveaxis(y, 0, 1).reshape(query.shape)


def _attend(query: Array, key: Stored, value: Stored, positions: Array) -> Array:
    """Two products around a float32 softmax; int8 keys and values are scaled outside them."""
    kind = query.dtype if key.scale is not None else jnp.promote_types(query.dtype, key.data.dtype)
    exact = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("BTKGH,BKSH->BKGTS", query.astype(kind), key.data.astype(kind), **exact)
    if key.scale is not None:
        scores = scores * key.scale[:, :, None, None, :]
    weights = _softmax(scores * query.shape[-1] ** -0.5, positions[:, None, None, :, None])
    if value.scale is not None:
        weights = weights * value.scale[:, :, None, None, :]
    y = jnp.einsum("BKGTS,BKSH->BTKGH", weights.astype(kind), value.data.astype(kind), **exact)
    return y.astype(query.dtype)


def _eight_rows(query: Array, key: Stored, value: Stored, positions: Array) -> Array:
    """The same for T = 1 on a TPU, whose matrix unit takes eight rows at a time.

    With fewer, XLA multiplies and sums outside it: twice the estimated cycles of a whole step.
    """
    groups = query.shape[3]
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, 0), (0, -groups % 8), (0, 0)))
    return _attend(padded, key, value, positions)[:, :, :, :groups]


def _softmax(scores: Array, positions: Array) -> Array:
    """Over the keys at or before `positions`; scores [... S] float32."""
    visible = jnp.arange(scores.shape[-1]) <= positions
    return jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1)
