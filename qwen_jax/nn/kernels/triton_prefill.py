"""Attention of whole pieces of texts on NVIDIA GPUs, over pages that hold them already.

A program has some queries of a row and a head, and reads the blocks that they see, in order, with a
softmax that follows: nothing of the size of scores is ever in memory. Blocks have one size: what a
query gets does not depend on how its text is cut.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from qwen_jax.nn.attention import MASKED
from qwen_jax.nn.kernels.integers import div, rem
from qwen_jax.nn.kernels.stored import Pair

BLOCK = 64  # keys read at once
_FEWEST, _MOST = 16, 64  # queries of a program


@functools.partial(jax.jit, static_argnames="interpret")
def attend(
    query: Array,
    keys: Pair,
    values: Pair,
    table: Array | None,
    positions: Array,
    ends: Array,
    *,
    interpret: bool = False,
) -> Array:
    """See attention.attend. query [B T K G H] -> [B T K G H]."""
    batch, length, heads, groups, _ = query.shape
    tile = min(_MOST, max(_FEWEST, pl.next_power_of_2(length)))
    tiles = pl.cdiv(length, tile)
    room = keys[0].shape[2] * (1 if table is None else table.shape[1])
    inputs = (query, keys, values, table, positions[:, 0], jnp.minimum(ends, room))
    return pl.pallas_call(
        functools.partial(_attend, tile=tile, tiles=tiles),
        grid=(batch * tiles, heads, groups),
        in_specs=jax.tree.map(lambda _: pl.no_block_spec, inputs),
        out_specs=pl.no_block_spec,
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="prefill",
    )(*inputs)


def _attend(
    query: Any, keys: Any, values: Any, table: Any, starts: Any, ends: Any, y_ref: Any,
    *, tile: int, tiles: int,
) -> None:  # fmt: skip
    b, first = div(pl.program_id(0), tiles), rem(pl.program_id(0), tiles) * tile
    h, g = pl.program_id(1), pl.program_id(2)
    start, end = starts[b], ends[b]
    length, size, page = query.shape[1], query.shape[-1], keys[0].shape[2]
    lane = jnp.arange(size)[None]
    quantised = keys[1] is not None
    kind = query.dtype if quantised else jnp.promote_types(query.dtype, keys[0].dtype)
    # past the end the last one again, which gives the same numbers at the same place
    token = jnp.minimum(first + jnp.arange(tile), length - 1)
    q = query[b, token[:, None], h, g, lane].astype(kind)

    def read(pair: Any, place: Any, real: Array) -> tuple[Array, Any]:
        """[BLOCK H] and its scales; zeros past the end, where NaN may lie."""
        load = lambda ref, mask: plgpu.load(ref, mask=mask, other=jnp.zeros((), ref.dtype))
        wide = jnp.broadcast_to(real[:, None], (BLOCK, size))
        data = load(pair[0].at[*place, slice(None)], wide).astype(kind)
        return data, load(pair[1].at[place], real) if quantised else None

    def more(n: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, top, total = carry
        block = n * BLOCK
        at = block + jnp.arange(BLOCK)
        number = b if table is None else table[b, div(block, page)]
        place = (number, h, pl.ds(rem(block, page), BLOCK))
        (key, key_scale), (value, value_scale) = (read(x, place, at < end) for x in (keys, values))
        scores = plgpu.dot(q, key, trans_b=True, allow_tf32=False).astype(jnp.float32)
        scores = scores * key_scale[None] if quantised else scores
        seen = (at[None] <= start + token[:, None]) & (at < end)[None]
        scores = jnp.where(seen, scores * size**-0.5, MASKED)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        weights, faded = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
        total = total * faded + jnp.sum(weights, axis=1)
        weights = weights * value_scale[None] if quantised else weights
        own = plgpu.dot(weights.astype(kind), value, allow_tf32=False).astype(jnp.float32)
        return y * faded[:, None] + own, higher, total

    limit = jnp.minimum(end, start + jnp.minimum(first + tile, length))
    none = jnp.zeros((tile,), jnp.float32)
    carry = jnp.zeros((tile, size), jnp.float32), none + MASKED, none
    y, _, total = jax.lax.fori_loop(0, div(limit + BLOCK - 1, BLOCK), more, carry)
    y = y / jnp.where(total > 0, total, 1.0)[:, None]
    y_ref[b, token[:, None], h, g, lane] = y.astype(y_ref.dtype)
