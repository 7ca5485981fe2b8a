"""Decode attention for NVIDIA GPUs, from a layer's product for queries, keys and values on.

It norms, turns and scales heads, stores new keys and values, and reads filled blocks alone.

Two kernels. `_part` has a program for every row, some of its queries, key/value head and chunk of
positions; the first chunk's also stores what is new. What others store cannot be relied on, so
every program makes new keys and values by itself. `_join` weighs the chunks. Blocks, chunks
and the rows of a product have fixed sizes: what a query gets depends on its own text alone.
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
from qwen_jax.nn.kernels.stored import Pair, arrays, pairs
from qwen_jax.nn.projected import Projected

BLOCK = 64  # positions read at once
ROWS = 16  # of a product: the fewest that a tensor core takes
_SLAB = 32  # chunks joined at once


@functools.partial(jax.jit, static_argnames="interpret")
def decode(
    asked: Projected,
    keys: Pair,
    values: Pair,
    table: Array | None,
    ends: Array,
    *,
    interpret: bool = False,
) -> tuple[Array, Pair, Pair]:
    """Store and attend. table [B blocks], ends [B]: see attention.attend.

    -> [B T K G H], keys, values.
    """
    qkv, where, norms = asked.qkv, asked.where, (asked.q_norm, asked.k_norm)
    batch, length, heads, groups, size = qkv.shape
    groups -= 2
    turn = {
        "norms": [norm.scale for norm in norms if norm is not None],
        "cos": where.angles[0][:, :, 0],
        "sin": where.angles[1][:, :, 0],
        "factor": [] if where.query_scale is None else [where.query_scale[:, :, 0, 0]],
    }
    eps = 0.0 if norms[0] is None else norms[0].eps
    page = keys[0].shape[2]
    room = page * (1 if table is None else table.shape[1])
    chunk = 256 if groups == 1 else 128
    chunks = pl.cdiv(room, chunk)
    most = max(1, ROWS // groups)  # queries of a program
    parts, own = pl.cdiv(length, most), min(most, length) * groups
    stores = arrays(keys, values)
    count = len(stores)
    starts, ends = where.positions[:, 0], jnp.minimum(ends, room)
    inputs = (table, starts, ends, qkv, turn)
    whole = pl.no_block_spec
    split = batch, parts, heads, chunks
    partial = lambda *shape: jax.ShapeDtypeStruct((*split, *shape), jnp.float32)
    part = lambda *shape: pl.BlockSpec(
        (None, None, None, None, *shape),
        lambda b, h, c: (div(b, parts), rem(b, parts), h, c, *[0] * len(shape)),
    )
    compiler = lambda stages: plgpu.CompilerParams(num_warps=4, num_stages=stages)
    *stores, y, top, total = pl.pallas_call(
        functools.partial(_part, chunk=chunk, parts=parts, most=most, eps=eps),
        grid=(batch * parts, heads, chunks),
        in_specs=[*jax.tree.map(lambda _: whole, inputs), *[whole] * count],
        out_specs=[whole] * count + [part(own, size), part(own), part(own)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in stores]
        + [partial(own, size), partial(own), partial(own)],
        input_output_aliases={len(jax.tree.leaves(inputs)) + n: n for n in range(count)},
        compiler_params=compiler(3),
        interpret=interpret,
        name="decode_part",
    )(*inputs, *stores)
    y = pl.pallas_call(
        functools.partial(_join, chunk=chunk, most=most, length=length),
        grid=(batch * length, heads, groups),
        in_specs=[whole] * 5,
        out_specs=pl.BlockSpec(
            (None, None, None, None, size),
            lambda b, h, g: (div(b, length), rem(b, length), h, g, 0),
        ),
        out_shape=jax.ShapeDtypeStruct((batch, length, heads, groups, size), qkv.dtype),
        compiler_params=compiler(1),
        interpret=interpret,
        name="decode_join",
    )(starts, ends, y, top, total)
    return y, *pairs(stores)


def _part(
    table: Any, starts: Any, ends: Any, qkv: Any, turn: Any, *refs: Any,
    chunk: int, parts: int, most: int, eps: float,
) -> None:  # fmt: skip
    count = (len(refs) - 3) // 2
    key, value, *scales = refs[count : 2 * count]  # the outputs, which are the inputs' memory
    y_ref, top_ref, total_ref = refs[2 * count :]
    _, length, _, groups, size = qkv.shape
    groups -= 2
    page, kind = key.shape[2], qkv.dtype
    kind = kind if scales else jnp.promote_types(kind, key.dtype)
    b, h, c = div(pl.program_id(0), parts), pl.program_id(1), pl.program_id(2)
    first, start, end = rem(pl.program_id(0), parts) * most, starts[b], ends[b]
    lane = jnp.arange(size)[None]

    def page_at(number: Array) -> Array:
        return b if table is None else table[b, number]

    def new(n: int, token: Array) -> tuple[Array, Array]:
        """Keys or values of tokens [R], as they are stored."""
        if n == 0:
            return _stored(_turned(qkv, turn, b, h, token, groups, -1, eps), key.dtype)
        return _stored(qkv[b, token[:, None], h, groups + 1, lane], key.dtype)

    def write(t: int) -> None:
        at = (page_at(div(start + t, page)), h, rem(start + t, page))
        for n in range(2):
            stored, scale = new(n, jnp.full((1,), t))
            (key, value)[n][*at, slice(None)] = stored[0]
            if scales:
                scales[n][at] = scale[0]

    for t in range(length):
        pl.when((c == 0) & (first == 0) & (start + t < end))(functools.partial(write, t))

    # the last query again and again, for a product of more rows
    row = jnp.minimum(jnp.arange(ROWS), y_ref.shape[0] - 1)
    token = jnp.minimum(first + div(row, groups), length - 1)
    q = _turned(qkv, turn, b, h, token, rem(row, groups), 0, eps).astype(kind)

    def read(block: Array, at: Array, n: int) -> tuple[Array, Array]:
        """Keys or values [BLOCK H] in `kind` and their scales [BLOCK]; zeros where none are."""
        store = (key, value)[n]
        place = (page_at(div(block, page)), h, pl.ds(rem(block, page), BLOCK))
        old = at < jnp.minimum(start, end)
        wide = lambda x: jnp.broadcast_to(x[:, None], (BLOCK, size))
        load = lambda ref, mask: plgpu.load(ref, mask=mask, other=jnp.zeros((), ref.dtype))
        data = load(store.at[*place, slice(None)], wide(old)).astype(kind)
        factor = load(scales[n].at[place], old) if scales else jnp.ones(BLOCK, jnp.float32)

        def merged() -> tuple[Array, Array]:
            fresh = (at >= start) & (at < end) & (at < start + length)
            source = jnp.clip(at - start, 0, length - 1)
            x, scale = new(n, source)
            one = jnp.where(fresh, scale, factor) if scales else factor
            return jnp.where(fresh[:, None], x.astype(kind), data), one

        return jax.lax.cond(block + BLOCK > start, merged, lambda: (data, factor))

    def more(n: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, top, total = carry
        block = c * chunk + n * BLOCK
        at = block + jnp.arange(BLOCK)
        keys, key_scale = read(block, at, 0)
        values, value_scale = read(block, at, 1)
        scores = _dot(q, keys, trans_b=True)
        scores = scores * key_scale[None] if scales else scores
        seen = (at[None] <= start + token[:, None]) & (at < end)[None]
        scores = jnp.where(seen, scores * size**-0.5, MASKED)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        weights, faded = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
        total = total * faded + jnp.sum(weights, axis=1)
        weights = weights * value_scale[None] if scales else weights
        return y * faded[:, None] + _dot(weights.astype(kind), values), higher, total

    limit = _limit(start, end, first, most, length)
    blocks = div(jnp.clip(limit - c * chunk, 0, chunk) + BLOCK - 1, BLOCK)
    none = jnp.zeros((ROWS,), jnp.float32)
    carry = jnp.zeros((ROWS, size), jnp.float32), none + MASKED, none
    y, top, total = jax.lax.fori_loop(0, blocks, more, carry)

    @pl.when(blocks > 0)  # the others are not read
    def keep() -> None:
        y_ref[row, :] = y
        top_ref[row] = top
        total_ref[row] = total


def _join(
    starts: Any, ends: Any, y_ref: Any, top_ref: Any, total_ref: Any, out_ref: Any,
    *, chunk: int, most: int, length: int,
) -> None:  # fmt: skip
    b, token = div(pl.program_id(0), length), rem(pl.program_id(0), length)
    head, part, groups = pl.program_id(1), div(token, most), pl.num_programs(2)
    row = rem(token, most) * groups + pl.program_id(2)
    live = div(_limit(starts[b], ends[b], part * most, most, length) + chunk - 1, chunk)
    size = out_ref.shape[-1]

    def more(n: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, top, total = carry
        seen = n * _SLAB + jnp.arange(_SLAB) < live
        at = (b, part, head, pl.ds(n * _SLAB, _SLAB), row)
        tops = plgpu.load(top_ref.at[at], mask=seen, other=MASKED)
        totals = plgpu.load(total_ref.at[at], mask=seen, other=0.0)
        wide = jnp.broadcast_to(seen[:, None], (_SLAB, size))
        parts = plgpu.load(y_ref.at[*at, slice(None)], mask=wide, other=0.0)
        higher = jnp.maximum(top, jnp.max(tops))
        weights, faded = jnp.exp(tops - higher), jnp.exp(top - higher)
        y = y * faded + jnp.sum(weights[:, None] * parts, axis=0)
        return y, higher, total * faded + jnp.sum(weights * totals)

    carry = jnp.zeros((size,), jnp.float32), jnp.float32(MASKED), jnp.float32(0)
    y, _, total = jax.lax.fori_loop(0, div(live + _SLAB - 1, _SLAB), more, carry)
    out_ref[...] = (y / jnp.where(total > 0, total, 1.0)).astype(out_ref.dtype)


def _turned(
    qkv: Any, turn: Any, b: Array, h: Array, token: Array, place: Any, norm: int, eps: float
) -> Array:
    """Heads [R H] of tokens [R] at a place or places [R] of the product: normed and turned.

    norm: 0 for queries, which are also scaled, -1 for keys.
    """
    size = qkv.shape[-1]
    lane = jnp.arange(size)
    half = rem(lane, size // 2)
    place = place if isinstance(place, int) else place[:, None]
    x, other = (
        qkv[b, token[:, None], h, place, at[None]] for at in (lane, rem(lane + size // 2, size))
    )
    wide = x.astype(jnp.float32), other.astype(jnp.float32)
    if turn["norms"]:
        scale = turn["norms"][norm]
        factor = jax.lax.rsqrt(jnp.sum(wide[0] * wide[0], axis=1) / size + eps)[:, None]
        at = lane, rem(lane + size // 2, size)
        wide = tuple(
            ((y * factor).astype(x.dtype) * scale[n][None]).astype(jnp.float32)
            for y, n in zip(wide, at, strict=True)
        )
    cos, sin = (turn[name][b, token[:, None], half[None]] for name in ("cos", "sin"))
    sin = jnp.where(lane < size // 2, -sin, sin)
    x = (wide[0] * cos + wide[1] * sin).astype(x.dtype)
    if norm == 0 and turn["factor"]:
        x = x * turn["factor"][0][b, token].astype(x.dtype)[:, None]
    return x


def _limit(start: Array, end: Array, first: Array, most: int, length: int) -> Array:
    """Up to where keys may be seen by the queries of a part."""
    return jnp.minimum(end, start + jnp.minimum(first + most, length))


def _dot(x: Array, y: Array, trans_b: bool = False) -> Array:
    return plgpu.dot(x, y, trans_b=trans_b, allow_tf32=False).astype(jnp.float32)


def _stored(x: Array, dtype: Any) -> tuple[Array, Array]:
    """As a cache keeps x [... H], with the scales of int8; see kv_cache.quantize."""
    if dtype != jnp.int8:
        return x.astype(dtype), jnp.ones(x.shape[:-1], jnp.float32)
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    x = x / jnp.where(scale > 0, scale, 1.0)[..., None]
    return _nearest(x).astype(jnp.int8), scale


def _nearest(x: Array) -> Array:
    """To even where in the middle: Triton has no rounding, and XLA undoes adding 2^23."""
    low = jnp.floor(x)
    rest, odd = x - low, low - 2 * jnp.floor(low / 2)
    return low + jnp.where((rest > 0.5) | ((rest == 0.5) & (odd == 1)), 1.0, 0.0)
