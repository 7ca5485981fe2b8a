"""Attention over keys and values that lie in pages, and which form of it runs where."""

import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from qwen_jax.nn.sums import alike, row_sum

MASKED = -1e30  # finite, so that a query without any key gives numbers and not NaN
_QUERY_BLOCK = 512  # queries of a whole text scored at once: bounds its [K G T S] scores
PAGE = 64  # tokens; on a CPU also the keys that are read at once
_KEY_BLOCK = 512  # keys that are read at once elsewhere


class Stored(Protocol):
    """Keys or values in pages [P K page H]; see kv_cache.Store."""

    @property
    def data(self) -> Array: ...

    @property
    def scale(self) -> Array | None:
        """[P K page] float32, the factor of int8 data."""


def attend(
    query: Array, key: Stored, value: Stored, table: Array | None, positions: Array, ends: Array
) -> Array:
    """Every query [B T K G H] sees the keys up to its own position [B T]; -> [B T K G H].

    table [B blocks]: the pages that a row's text lies in, one after another; None: row b has page
    b alone. ends [B]: how many tokens a row's text has. What lies past them is never seen, and
    blocks past the longest are not read.
    """
    form = jax.lax.platform_dependent
    if table is None:  # one product on an accelerator, for a token and for drafts behind it
        whole = lambda q, k, v, table, positions, ends: _whole(q, k, v, positions)
        padded = lambda q, k, v, table, positions, ends: _eight_rows(q, k, v, positions)
    else:
        whole = functools.partial(_in_blocks, size=_KEY_BLOCK, rows=1)
        padded = functools.partial(_in_blocks, size=_KEY_BLOCK, rows=8)
    blocks = functools.partial(_in_blocks, size=PAGE, rows=alike(_kind(query, key)))
    return form(query, key, value, table, positions, ends, cpu=blocks, tpu=padded, default=whole)


def attend_whole(query: Array, key: Stored, value: Stored, positions: Array) -> Array:
    """The same where row b's keys and values are page b of [B K S H], which is read whole."""
    length = query.shape[1]
    if length <= _QUERY_BLOCK or length % _QUERY_BLOCK:
        return _whole(query, key, value, positions)
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, _QUERY_BLOCK, *x.shape[2:]), 1, 0)
    block = lambda xs: _whole(xs[0], key, value, xs[1])
    y = jax.lax.map(block, (split(query), split(positions)))
    return jnp.moveaxis(y, 0, 1).reshape(query.shape)


def _whole(query: Array, key: Stored, value: Stored, positions: Array) -> Array:
    """Two products around a float32 softmax."""
    batch, length, heads, groups, size = query.shape
    rows, places = _rows(query), jnp.tile(positions, (1, groups))
    scores = _scores(rows, key, jnp.arange(key.data.shape[2]), places)
    y = _weighted(rows, jax.nn.softmax(scores, axis=-1), key, value)
    y = y.astype(query.dtype).reshape(batch, heads, groups, length, size)
    return jnp.moveaxis(y, 3, 1)


def _in_blocks(
    query: Array,
    key: Stored,
    value: Stored,
    table: Array | None,
    positions: Array,
    ends: Array,
    *,
    size: int,
    rows: int,
) -> Array:
    """Block by block of about `size` keys, with a softmax that follows.

    Blocks have the same size and order for every row, and one that a row does not see changes no
    bit of it. rows: the least number of rows of a product.
    """
    batch, length, heads, groups, head_dim = query.shape
    count = groups * length
    missing = max(0, rows - count)
    queries = jnp.pad(_rows(query), ((0, 0), (0, 0), (0, missing), (0, 0)))
    places = jnp.pad(jnp.tile(positions, (1, groups)), ((0, 0), (0, missing)))
    page = key.data.shape[2]
    pages = 1  # read at once
    if table is not None:
        pages = max(1, min(size // page, table.shape[1]))
        table = jnp.pad(table, ((0, 0), (0, -table.shape[1] % pages)))
    block = math.gcd(page, size) if page > size else page * pages

    def more(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, y = carry
        read = functools.partial(_block, table=table, number=number, pages=pages, block=block)
        at = number * block + jnp.arange(block)
        keys = jax.tree.map(read, key)
        values = _cleared(jax.tree.map(read, value), at < ends[:, None])
        scores = _scores(queries, keys, at, places)  # [B K R S]
        new = jnp.maximum(highest, jnp.max(scores, axis=-1))
        weights, faded = jnp.exp(scores - new[..., None]), jnp.exp(highest - new)
        own = _weighted(queries, weights, keys, values)
        return new, total * faded + row_sum(weights), y * faded[..., None] + own

    row = jnp.zeros(queries.shape[:3], jnp.float32)
    start = jnp.full_like(row, -jnp.inf), row, jnp.zeros(queries.shape, jnp.float32)
    _, total, y = jax.lax.fori_loop(0, -(-jnp.max(ends) // block), more, start)
    y = (y / total[..., None]).astype(query.dtype)[:, :, :count]
    return jnp.moveaxis(y.reshape(batch, heads, groups, length, head_dim), 3, 1)


def _block(x: Array, *, table: Array | None, number: Array, pages: int, block: int) -> Array:
    """Block `number` of every row, [B K S ...], of an array of pages [P K page ...]."""
    page = x.shape[2]
    if table is None:
        return jax.lax.dynamic_slice_in_dim(x, number * block, block, axis=2)
    if page <= block:
        own = jax.lax.dynamic_slice_in_dim(table, number * pages, pages, axis=1)
        found = jnp.moveaxis(x.at[own].get(mode="clip"), 1, 2)  # [B K pages page ...]
        return found.reshape(*found.shape[:2], block, *found.shape[4:])
    parts = page // block
    own = jax.lax.dynamic_index_in_dim(table, number // parts, axis=1, keepdims=False)
    sizes = (1, x.shape[1], block, *x.shape[3:])
    start = number % parts * block

    def cut(page: Array) -> Array:
        return jax.lax.dynamic_slice(x, (page, 0, start, *[0] * (x.ndim - 3)), sizes)[0]

    return jax.vmap(cut)(own)


def _cleared(value: Stored, real: Array) -> Stored:
    """Values with zeros where nothing is stored, real [B S]: what was left there may be NaN."""
    return jax.tree.map(
        lambda x: (
            x
            if x.dtype == jnp.int8
            else jnp.where(real.reshape(real.shape[0], 1, -1, *[1] * (x.ndim - 3)), x, 0)
        ),
        value,
    )


def _scores(rows: Array, key: Stored, at: Array, positions: Array) -> Array:
    """float32 [B K R S] of rows [B K R H], MASKED for keys behind a row; at [S]: where keys are."""
    kind = _kind(rows, key)
    rows, data = rows.astype(kind), key.data.astype(kind)
    scores = jnp.einsum("BKRH,BKSH->BKRS", rows, data, preferred_element_type=jnp.float32)
    if key.scale is not None:
        scores = scores * key.scale[:, :, None, :]
    visible = at <= positions[:, None, :, None]
    return jnp.where(visible, scores * rows.shape[-1] ** -0.5, MASKED)


def _weighted(rows: Array, weights: Array, key: Stored, value: Stored) -> Array:
    """The sum of values under float32 weights [B K R S]; -> float32 [B K R H]."""
    kind = _kind(rows, key)
    if value.scale is not None:
        weights = weights * value.scale[:, :, None, :]
    weights, data = weights.astype(kind), value.data.astype(kind)
    return jnp.einsum("BKRS,BKSH->BKRH", weights, data, preferred_element_type=jnp.float32)


def _kind(rows: Array, key: Stored) -> jnp.dtype:
    """Of the products; int8 keys and values are scaled outside them."""
    return rows.dtype if key.scale is not None else jnp.promote_types(rows.dtype, key.data.dtype)


def _rows(query: Array) -> Array:
    """[B T K G H] -> [B K R H]: what a key/value head is asked, R = G T."""
    batch, length, heads, groups, size = query.shape
    return jnp.moveaxis(query, 1, 3).reshape(batch, heads, groups * length, size)


def _eight_rows(query: Array, key: Stored, value: Stored, positions: Array) -> Array:
    """The whole for T = 1 on a TPU, whose matrix unit takes eight rows at a time.

    With fewer, XLA multiplies and sums outside it: twice the estimated cycles of a whole step.
    """
    groups = query.shape[3]
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, 0), (0, -groups % 8), (0, 0)))
    return _whole(padded, key, value, positions)[:, :, :, :groups]
