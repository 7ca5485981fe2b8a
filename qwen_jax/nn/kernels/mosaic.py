"""Decode attention for TPUs, from a layer's product for queries, keys and values on.

It norms, turns and scales heads, stores new keys and values, and reads filled blocks alone.
One kernel whose grid is a list of work: for each row a step for every block of its text, then one
for every tile of the cache that its new tokens lie in. Neither empty slots nor room cost anything.
Blocks are added in order, by products of one size: what a query gets depends on its own text alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qwen_jax.nn.attention import MASKED
from qwen_jax.nn.kernels.integers import div
from qwen_jax.nn.kernels.stored import Pair, arrays, pairs
from qwen_jax.nn.kernels.work import Work
from qwen_jax.nn.projected import Projected
from qwen_jax.nn.rope import Where

BLOCK = 64  # positions of a product
ROWS = 16  # queries of a product
_BYTES = 2**20  # of keys in a step: four such buffers lie in on-chip memory
_LANES = 128


@functools.partial(jax.jit, static_argnames="interpret")
def decode(
    asked: Projected,
    keys: Pair,
    values: Pair,
    table: Array | None,
    ends: Array,
    *,
    interpret: Any = False,
) -> tuple[Array, Pair, Pair]:
    """Store and attend. table [B blocks], ends [B]: see attention.attend.

    -> [B T K G H], keys, values.
    """
    batch, length, heads, groups, size = asked.qkv.shape
    groups, page, kind = groups - 2, keys[0].shape[2], keys[0].dtype
    if table is None:
        table = jnp.arange(batch, dtype=jnp.int32)[:, None]
    stores = arrays(keys, values)
    quantised = len(stores) == 4
    part = _part(page, heads * size * kind.itemsize, quantised)
    work = Work(length, page, part, tile=32 // kind.itemsize, room=table.shape[1] * page)
    steps, total = work.plan(table, asked.where.positions[:, 0], ends)
    rows = pl.cdiv(length * groups, ROWS) * ROWS
    norms = [norm.scale[None] for norm in (asked.q_norm, asked.k_norm) if norm is not None]
    eps = 0.0 if asked.q_norm is None else asked.q_norm.eps
    turns = _turns(asked.where, size)
    shape_of = jax.ShapeDtypeStruct if interpret else pltpu.HBM
    if not interpret:  # XLA would take all of a layer's scales into on-chip memory and back
        stores = [pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in stores]
    before = len(steps) + 2 + len(norms)  # arguments before the stores

    row = lambda *shape: pl.BlockSpec((None, *shape), lambda i, *s: (s[0][i], *[0] * len(shape)))
    block = lambda x: pl.BlockSpec(
        (None, heads, part, *x.shape[3:]), lambda i, *s: work.block(i, s, x.ndim)
    )
    lanes = _LANES if part % _LANES == 0 else part  # of a block of scales
    unit = lambda x: work.tile if x.ndim == 4 else lanes
    written = lambda x: pl.BlockSpec(
        (None, heads, unit(x), *x.shape[3:]), lambda i, *s: work.written(i, s, unit(x), x.ndim)
    )
    y, *stores = pl.pallas_call(
        functools.partial(_step, work=work, lanes=lanes, eps=eps, norms=len(norms)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(steps),
            grid=(total,),
            in_specs=[row(length, heads, groups + 2, size), row(*turns.shape[1:])]
            + [pl.BlockSpec((1, size), lambda i, *s: (0, 0))] * len(norms)
            + [block(x) for x in stores],
            out_specs=[row(heads, length * groups, size)] + [written(x) for x in stores],
            scratch_shapes=[
                pltpu.VMEM((heads, rows, size), jnp.float32),  # queries
                pltpu.VMEM((2, length, heads, 1, size), jnp.float32),  # new keys and values
                pltpu.VMEM((heads, rows, size), jnp.float32),
                pltpu.VMEM((heads, rows, 1), jnp.float32),
                pltpu.VMEM((heads, rows, 1), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, length * groups, size), asked.qkv.dtype),
            *(shape_of(x.shape, x.dtype) for x in stores),
        ],
        input_output_aliases={before + n: 1 + n for n in range(len(stores))},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="decode",
    )(*steps, asked.qkv, turns, *norms, *stores)  # fmt: skip
    y = y.reshape(batch, heads, length, groups, size)
    y = jnp.where(ends[:, None, None, None, None] > 0, jnp.moveaxis(y, 2, 1), 0)
    return y, *pairs(stores)


def _part(page: int, token: int, quantised: bool) -> int:
    """Positions of a step: few enough for on-chip memory; scales are cut by their lanes."""
    sizes = (512, 256, 128) if quantised else (512, 256, 128, 64)
    fits = [n for n in sizes if page % n == 0 and (n * token <= _BYTES or n == sizes[-1])]
    return fits[0] if fits else page


def _step(*refs: Any, work: Work, lanes: int, eps: float, norms: int) -> None:
    scalars, (qkv, turns), norm_refs, rest = (
        refs[:5],
        refs[5:7],
        refs[7:][:norms],
        refs[7 + norms :],
    )
    count = (len(rest) - 6) // 2
    stored, y_ref, written = rest[:count], rest[count], rest[count + 1 : -5]
    q_ref, new, y_sum, top_ref, total_ref = rest[-5:]
    length, _, groups, _ = qkv.shape
    groups -= 2
    row, step, blocks, block, tile = work.at(pl.program_id(0), scalars)
    start, begin = scalars[3][row], block * work.part
    limit = work.row(start, scalars[4][row])[0]
    size, quantised = q_ref.shape[-1], count == 4
    kind = qkv.dtype if quantised else jnp.promote_types(qkv.dtype, stored[0].dtype)

    @pl.when(step == 0)
    def begin_row() -> None:
        y_sum[...] = jnp.zeros_like(y_sum)
        top_ref[...] = jnp.full_like(top_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        q_ref[...] = jnp.zeros_like(q_ref)
        for t in range(length):
            at = lambda place, t=t: qkv[t, :, pl.ds(place, 1), :]
            turned = functools.partial(_turned, turns=turns[t], eps=eps)
            for g in range(groups):
                q = turned(at(g), norm=norm_refs[0][...] if norms else None)
                q = q * turns[t, 2:3].astype(q.dtype)
                q_ref[:, pl.ds(t * groups + g, 1), :] = q.astype(jnp.float32)
            key = turned(at(groups), norm=norm_refs[1][...] if norms else None)
            new[0, t] = key.astype(jnp.float32)
            new[1, t] = at(groups + 1).astype(jnp.float32)

    def merged(data: Array, scale: Array | None, n: int, base: Array) -> tuple[Array, Any]:
        """What is stored from `base` on with what is new; zeros where nothing is."""
        data, scale = _with_new(data, scale, base, base, new[n], stored[n].dtype, start, limit)
        data = jnp.where(_places(data.ndim, data.shape[1], base) < limit, data, 0)
        if scale is not None:
            scale = jnp.where(_places(2, scale.shape[1], base) < limit, scale, 0)
        return data, scale

    def attend(keys: Any, values: Any, base: Array, hidden: bool) -> None:
        """One block [K BLOCK H] and its scales; hidden: not every query sees all of it."""
        for first in range(0, q_ref.shape[1], ROWS):
            own = slice(first, first + ROWS)
            scores = _dot(q_ref[:, own, :].astype(kind), keys[0].astype(kind), 2)
            scores = scores * keys[1][:, None] if quantised else scores
            scores = scores * size**-0.5
            if hidden:
                shape = (1, ROWS, BLOCK)
                key_at = base + jax.lax.broadcasted_iota(jnp.int32, shape, 2)
                token = div(first + jax.lax.broadcasted_iota(jnp.int32, shape, 1), groups)
                scores = jnp.where((key_at <= start + token) & (key_at < limit), scores, MASKED)
            top = top_ref[:, own, :]
            higher = jnp.maximum(top, scores.max(-1, keepdims=True))
            weights, faded = jnp.exp(scores - higher), jnp.exp(top - higher)
            top_ref[:, own, :] = higher
            total_ref[:, own, :] = total_ref[:, own, :] * faded + weights.sum(-1, keepdims=True)
            weights = weights * values[1][:, None] if quantised else weights
            y = _dot(weights.astype(kind), values[0].astype(kind), 1)
            y_sum[:, own, :] = y_sum[:, own, :] * faded + y

    def visit(own: slice, base: Array, hidden: bool) -> None:
        data: list[Any] = [x[:, own, :] for x in stored[:2]]
        scales: list[Any] = [x[:, own] for x in stored[2:]] or [None, None]
        pairs = list(zip(data, scales, strict=True))
        if hidden:
            pairs = [merged(x, scale, n, base) for n, (x, scale) in enumerate(pairs)]
        attend(pairs[0], pairs[1], base, hidden)

    for n in range(work.part // BLOCK):
        base, own = begin + n * BLOCK, slice(n * BLOCK, (n + 1) * BLOCK)
        seen, old = (step < blocks) & (base < limit), base + BLOCK <= start
        pl.when(seen & old)(functools.partial(visit, own, base, False))
        pl.when(seen & ~old)(functools.partial(visit, own, base, True))

    @pl.when(step == blocks - 1)
    def end_row() -> None:
        own = slice(0, y_ref.shape[1])
        y_ref[...] = (y_sum[:, own, :] / total_ref[:, own, :]).astype(y_ref.dtype)

    @pl.when(step >= blocks)
    def write() -> None:
        place = tile * work.tile
        base = div(place, lanes) * lanes  # of the scales around it
        at = pl.ds(pl.multiple_of(place - begin, work.tile), work.tile)
        for n in range(2):
            scale = None
            if quantised:
                near = pl.ds(pl.multiple_of(base - begin, lanes), lanes)
                scale = stored[2 + n][:, near] if lanes < work.part else stored[2 + n][...]
            data, scale = _with_new(
                stored[n][:, at, :], scale, place, base, new[n], stored[n].dtype, start, limit
            )
            written[n][...] = data.astype(written[n].dtype)
            if quantised:
                written[2 + n][...] = scale


def _with_new(
    data: Array, scale: Any, base: Array, scale_base: Array, new: Any, dtype: Any, start: Array,
    limit: Array,
) -> tuple[Array, Any]:  # fmt: skip
    """Stored vectors [K S H], as float32, and scales [K S] with the new tokens in their places."""
    data = data.astype(jnp.float32)
    for t in range(new.shape[0]):
        x, factor = _stored(new[t, :, 0, :], dtype)
        position = jnp.where(start + t < limit, start + t, -1)
        here = _places(3, data.shape[1], base) == position
        data = jnp.where(here, x.astype(jnp.float32)[:, None], data)
        if factor is not None:
            scale = jnp.where(_places(2, scale.shape[1], scale_base) == position, factor, scale)
    return data, scale


def _turns(where: Where, size: int) -> Array:
    """[B T 3 H]: what a head's numbers, and those half a head away, and queries are scaled by."""
    cos, sin = (x[:, :, 0] for x in where.angles)
    factor = 1.0 if where.query_scale is None else where.query_scale[:, :, 0]
    whole = jnp.broadcast_to(jnp.float32(factor), (*cos.shape[:2], size))
    both = [jnp.concatenate(pair, axis=-1) for pair in ((cos, cos), (-sin, sin))]
    return jnp.stack([*both, whole], axis=2)


def _turned(x: Array, turns: Array, norm: Array | None, eps: float) -> Array:
    """Heads [K 1 H] of a token, normed and turned."""
    wide, dtype, size = x.astype(jnp.float32), x.dtype, x.shape[-1]
    if norm is not None:
        mean = jnp.sum(wide * wide, axis=-1, keepdims=True) / size
        wide = ((wide * jax.lax.rsqrt(mean + eps)).astype(dtype) * norm).astype(jnp.float32)
    away = pltpu.roll(wide, size // 2, axis=2)
    return (wide * turns[0:1] + away * turns[1:2]).astype(dtype)


def _places(axes: int, count: int, base: Array) -> Array:
    """base, base + 1 ... along the second of so many axes."""
    shape = (1, count, 1)[:axes]
    return base + jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def _dot(x: Array, y: Array, over: int) -> Array:
    """x [K M N], y [K ...]: products for every head."""
    dims = (((2,), (over,)), ((0,), (0,)))
    precise = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(x, y, dims, precision=precise, preferred_element_type=jnp.float32)


def _stored(x: Array, dtype: Any) -> tuple[Array, Array | None]:
    """As a cache keeps x [K H], with the scales [K 1] of int8; see kv_cache.quantize."""
    if dtype != jnp.int8:
        return x.astype(dtype), None
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8), scale
