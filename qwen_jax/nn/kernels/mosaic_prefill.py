"""Attention of whole pieces of texts on TPUs, over pages that hold them already.

A program has some queries of a row, of a few heads. Its steps are the blocks that they see, in
order, with a softmax that follows: nothing of the size of scores is ever in main memory. A block is
as many pages as make up one size, or a part of a page: what a query gets does not depend on how its
text is cut, nor on how long pages are.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qwen_jax.nn.attention import MASKED
from qwen_jax.nn.kernels.integers import div, rem
from qwen_jax.nn.kernels.stored import Pair, arrays

BLOCK = 512  # keys of a step
_HEADS = 8  # key/value heads of a program, where there are more: rows of a register of scales
_BYTES = 4096  # of queries of a program, all heads together, for each number of a head
_FEWEST, _MOST = 16, 256  # of a head
_LANES = 128


@functools.partial(jax.jit, static_argnames="interpret")
def attend(
    query: Array,
    keys: Pair,
    values: Pair,
    table: Array | None,
    positions: Array,
    ends: Array,
    *,
    interpret: Any = False,
) -> Array:
    """See attention.attend. query [B T K G H] -> [B T K G H]."""
    batch, length, heads, groups, size = query.shape
    page = keys[0].shape[2]
    if table is None:
        table = jnp.arange(batch, dtype=jnp.int32)[:, None]
    own = _HEADS if heads % _HEADS == 0 else heads
    room = _BYTES // (own * groups * query.dtype.itemsize)
    most = max(_FEWEST, min(_MOST, 1 << room.bit_length() - 1))
    tile = min(most, max(_FEWEST, pl.next_power_of_2(length)))
    unit = math.gcd(page, BLOCK)
    pieces = BLOCK // unit
    starts, ends = positions[:, 0], jnp.minimum(ends, table.shape[1] * page)
    limits = functools.partial(_limit, tile=tile, length=length)
    steps = jnp.max(limits(starts, ends, pl.cdiv(length, tile) - 1) + BLOCK - 1) // BLOCK

    def stored(x: Array) -> tuple[list[Array], list[pl.BlockSpec]]:
        """An array for every piece of a block, and where the piece lies."""
        apart = x.ndim == 3 and unit % _LANES > 0 and unit < page  # scales that cut a register
        if apart:
            x = jnp.swapaxes(x.reshape(*x.shape[:2], -1, unit), 1, 2)

        def at(n: int, b: Any, h: Any, t: Any, i: Any, *s: Any) -> tuple[Any, ...]:
            last = jnp.maximum(limits(s[1][b], s[2][b], t) - 1, 0)
            place = jnp.minimum((i * pieces + n) * unit, div(last, unit) * unit)
            number, part = s[0][b, div(place, page)], div(rem(place, page), unit)
            return (number, part, h, 0) if apart else (number, h, part, *[0] * (x.ndim - 3))

        shape = (None, None, own, unit) if apart else (None, own, unit, *x.shape[3:])
        specs = [pl.BlockSpec(shape, functools.partial(at, n)) for n in range(pieces)]
        return [x] * pieces, specs

    stores = [stored(x) for x in arrays(keys, values)]
    wide = own * groups * size
    asked = pl.BlockSpec((None, tile, wide), lambda b, h, t, i, *s: (b, t, h))
    rows = own * groups, tile
    y = pl.pallas_call(
        functools.partial(_attend, groups=groups, pieces=pieces, limits=limits),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, heads // own, pl.cdiv(length, tile), jnp.maximum(steps, 1)),
            in_specs=[asked, *(spec for _, specs in stores for spec in specs)],
            out_specs=asked,
            scratch_shapes=[
                pltpu.VMEM((*rows, size), query.dtype),
                pltpu.VMEM((*rows, size), jnp.float32),
                pltpu.VMEM((*rows, 1), jnp.float32),
                pltpu.VMEM((*rows, 1), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, length, heads * groups * size), query.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="prefill",
    )(table, starts, ends, query.reshape(batch, length, -1), *(x for xs, _ in stores for x in xs))
    return y.reshape(query.shape)


def _limit(start: Array, end: Array, number: Any, *, tile: int, length: int) -> Array:
    """Up to where keys may be seen by the queries of a tile."""
    return jnp.minimum(end, start + jnp.minimum((number + 1) * tile, length))


def _attend(*refs: Any, groups: int, pieces: int, limits: Any) -> None:
    (_, starts, ends, asked), stored = refs[:4], refs[4:-5]
    y_ref, q_ref, y_sum, top_ref, total_ref = refs[-5:]
    keys, values, *scales = (stored[n : n + pieces] for n in range(0, len(stored), pieces))
    b, number, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    (count, tile, size), base = q_ref.shape, step * BLOCK
    start, end = starts[b], ends[b]
    limit = limits(start, end, number)
    first = start + number * tile  # position of the first query
    kind = q_ref.dtype if scales else jnp.promote_types(q_ref.dtype, keys[0].dtype)
    lanes = [slice(n * size, (n + 1) * size) for n in range(count)]

    @pl.when(step == 0)
    def begin() -> None:
        for n, own in enumerate(lanes):
            q_ref[n] = asked[:, own]
        y_sum[...] = jnp.zeros_like(y_sum)
        top_ref[...] = jnp.full_like(top_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)

    def visit(h: Array, hidden: bool) -> None:
        """A head's block; hidden: not every query sees all of it."""
        real = lambda shape, axis: base + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < end
        clear = lambda x, axis: jnp.where(real(x.shape, axis), x, 0) if hidden else x
        whole = lambda xs, axis: jnp.concatenate(xs, axis=axis) if pieces > 1 else xs[0]
        key = whole([x[h] for x in keys], 0).astype(kind)
        value = clear(whole([x[h] for x in values], 0).astype(kind), 0)
        factors = [clear(whole([x[pl.ds(h, 1)] for x in pair], 1), 1) for pair in scales]
        for n in (h * groups + g for g in range(groups)):
            scores = _dot(q_ref[n].astype(kind), key, 1)
            scores = (scores * factors[0] if scales else scores) * size**-0.5
            if hidden:
                token = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
                at = base + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
                scores = jnp.where((at <= first + token) & (at < end), scores, MASKED)
            scores = jnp.maximum(scores, MASKED)  # else scaled and taken off in one, in some blocks
            top = top_ref[n]
            higher = jnp.maximum(top, scores.max(-1, keepdims=True))
            weights, faded = jnp.exp(scores - higher), jnp.exp(top - higher)
            top_ref[n] = higher
            total_ref[n] = total_ref[n] * faded + weights.sum(-1, keepdims=True)
            weights = weights * factors[1] if scales else weights
            y_sum[n] = y_sum[n] * faded + _dot(weights.astype(kind), value, 0)

    def every(hidden: bool) -> None:
        jax.lax.fori_loop(0, count // groups, lambda h, _: visit(h, hidden), None)

    seen = base + BLOCK <= jnp.minimum(first + 1, end)
    pl.when((base < limit) & seen)(functools.partial(every, False))
    pl.when((base < limit) & ~seen)(functools.partial(every, True))

    @pl.when(step == pl.num_programs(3) - 1)
    def finish() -> None:
        for n, own in enumerate(lanes):
            total = total_ref[n]
            y_ref[:, own] = (y_sum[n] / jnp.where(total > 0, total, 1.0)).astype(y_ref.dtype)


def _dot(x: Array, y: Array, over: int) -> Array:
    dims = (((1,), (over,)), ((), ()))
    precise = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(x, y, dims, precision=precise, preferred_element_type=jnp.float32)
