"""Attention over keys and values laid out [B K S H], and which form of it runs where."""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

MASKED = -1e30  # finite, so that a query without any key gives numbers and not NaN
_QUERY_BLOCK = 512  # queries scored at once: bounds the [K G T S] scores of a long prefill
_KEY_BLOCK = 512  # keys that a step on a CPU reads at once


class Stored(Protocol):
    """Keys or values [B K S H], key s being the one at position s; see cache.Store."""

    @property
    def data(self) -> Array: ...

    @property
    def scale(self) -> Array | None:
        """[B K S] float32, the factor of int8 data."""


def attend(
    query: Array, key: Stored, value: Stored, positions: Array, longest: Array | None = None
) -> Array:
    """Every query [B T K G H] sees the keys up to its own position [B T]; -> [B T K G H].

    longest []: keys that the rows whose result counts may see; the others get no more either.
    """
    length = query.shape[1]
    if length == 1:
        filled = _attend
        if longest is not None and key.data.shape[2] > _KEY_BLOCK:
            filled = functools.partial(_in_blocks, longest=longest)
        form = jax.lax.platform_dependent
        return form(query, key, value, positions, cpu=filled, tpu=_eight_rows, default=_attend)
    if length <= _QUERY_BLOCK or length % _QUERY_BLOCK:
        return _attend(query, key, value, positions)
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, _QUERY_BLOCK, *x.shape[2:]), 1, 0)
    block = lambda xs: _attend(xs[0], key, value, xs[1])
    y = jax.lax.map(block, (split(query), split(positions)))
    return jnp.moveaxis(y, 0, 1).reshape(query.shape)


def _attend(query: Array, key: Stored, value: Stored, positions: Array) -> Array:
    """Two products around a float32 softmax."""
    scores = _scores(query, key, jnp.arange(key.data.shape[2]), positions)
    return _weighted(query, jax.nn.softmax(scores, axis=-1), key, value).astype(query.dtype)


def _in_blocks(query: Array, key: Stored, value: Stored, positions: Array, longest: Array) -> Array:
    """The same for T = 1, block by block of keys up to the longest text: a window of 8192 costs
    what is in it. Blocks behind a row's own text change no bit of it.
    """
    length = key.data.shape[2]

    def more(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, y = carry
        start = jnp.minimum(number * _KEY_BLOCK, length - _KEY_BLOCK)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, _KEY_BLOCK, axis=2)
        keys, values = jax.tree.map(cut, (key, value))
        places = start + jnp.arange(_KEY_BLOCK)
        places = jnp.where(places < number * _KEY_BLOCK, length, places)  # seen in the one before
        scores = _scores(query, keys, places, positions)  # [B K G T S]
        new = jnp.maximum(highest, jnp.max(scores, axis=-1))
        weights, faded = jnp.exp(scores - new[..., None]), jnp.exp(highest - new)
        own = _weighted(query, weights, keys, values)  # [B T K G H]
        y = y * jnp.moveaxis(faded, -1, 1)[..., None] + own
        return new, total * faded + jnp.sum(weights, axis=-1), y

    batch, queries, heads, groups, _ = query.shape
    row = jnp.zeros((batch, heads, groups, queries), jnp.float32)
    start = jnp.full_like(row, -jnp.inf), row, jnp.zeros(query.shape, jnp.float32)
    blocks = jnp.minimum(-(-longest // _KEY_BLOCK), -(-length // _KEY_BLOCK))
    _, total, y = jax.lax.fori_loop(0, blocks, more, start)
    return (y / jnp.moveaxis(total, -1, 1)[..., None]).astype(query.dtype)


def _scores(query: Array, key: Stored, places: Array, positions: Array) -> Array:
    """float32 [B K G T S], MASKED for keys behind a query; places [S]: where the keys stand."""
    kind = _kind(query, key)
    query, data = query.astype(kind), key.data.astype(kind)
    scores = jnp.einsum("BTKGH,BKSH->BKGTS", query, data, preferred_element_type=jnp.float32)
    if key.scale is not None:
        scores = scores * key.scale[:, :, None, None, :]
    visible = places <= positions[:, None, None, :, None]
    return jnp.where(visible, scores * query.shape[-1] ** -0.5, MASKED)


def _weighted(query: Array, weights: Array, key: Stored, value: Stored) -> Array:
    """The sum of values under float32 weights [B K G T S]; -> float32 [B T K G H]."""
    kind = _kind(query, key)
    if value.scale is not None:
        weights = weights * value.scale[:, :, None, None, :]
    weights, data = weights.astype(kind), value.data.astype(kind)
    return jnp.einsum("BKGTS,BKSH->BTKGH", weights, data, preferred_element_type=jnp.float32)


def _kind(query: Array, key: Stored) -> jnp.dtype:
    """Of the products; int8 keys and values are scaled outside them."""
    return query.dtype if key.scale is not None else jnp.promote_types(query.dtype, key.data.dtype)


def _eight_rows(query: Array, key: Stored, value: Stored, positions: Array) -> Array:
    """The same for T = 1 on a TPU, whose matrix unit takes eight rows at a time.

    With fewer, XLA multiplies and sums outside it: twice the estimated cycles of a whole step.
    """
    groups = query.shape[3]
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, 0), (0, -groups % 8), (0, 0)))
    return _attend(padded, key, value, positions)[:, :, :, :groups]
