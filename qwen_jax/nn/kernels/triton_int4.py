"""Products with int4 weights on NVIDIA GPUs: one kernel, exact up to the order of float32 sums.

A code less its zero is exact in bfloat16; a group's products are summed before its scale reaches
them. Nothing but the result is in memory. A row does not depend on those beside it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from qwen_jax.nn.kernels.integers import div, rem

MOST = 4096  # rows
_FEW = 64  # rows that one program has; where there are more, squares of rows and outputs
_SIDE = 128  # of such a square
_FEWEST = 16  # numbers on a side of a product
_LONGEST = 64  # bytes of an output read at once
_AT_ONCE = 4  # such reads on their way together, with 16 rows' inputs; fewer with more
_PROGRAMS = 264  # at least, where outputs are enough: two for each processor of an H200


def fits(codes: Array) -> bool:
    """Whether these are halves."""
    return codes.dtype == jnp.uint8 and codes.ndim == 3


@functools.partial(jax.jit, static_argnames=("dtype", "interpret"))
def product(
    x: Array,
    codes: Array,
    scales: Array,
    zeros: Array | None,
    bias: Array | None,
    *,
    dtype: Any = None,
    interpret: bool = False,
) -> Array:
    """x [M in] -> [M out] in `dtype`, default x's.

    codes [out groups half]: see quant_matmul.halved; scales and zeros [out groups], bias [out].
    """
    rows, outputs = x.shape[0], len(codes)
    few = rows <= _FEW
    own = _SIDE if not few else 32 if outputs >= 32 * _PROGRAMS else _FEWEST
    tile = max(_FEWEST, pl.next_power_of_2(rows)) if few else _SIDE
    extra = {"zeros": zeros, "bias": bias}
    inputs = (x, codes, scales, extra)
    return pl.pallas_call(
        functools.partial(_product, rows=tile, own=own),
        grid=(pl.cdiv(rows, tile), pl.cdiv(outputs, own)),
        in_specs=jax.tree.map(lambda _: pl.no_block_spec, inputs),
        out_specs=pl.no_block_spec,
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype or x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4 if few else 8, num_stages=4 if few else 3),
        interpret=interpret,
        name="int4_product",
    )(*inputs)


def _product(x: Any, codes: Any, scales: Any, extra: Any, y: Any, *, rows: int, own: int) -> None:
    outputs, groups, half = codes.shape
    # past the end the last one again, which gives the same numbers at the same place
    row = jnp.minimum(pl.program_id(0) * rows + jnp.arange(rows), x.shape[0] - 1)[:, None]
    at = jnp.minimum(pl.program_id(1) * own + jnp.arange(own), outputs - 1)
    step = next(n for n in (_LONGEST, 32, _FEWEST) if half % n == 0)
    parts = half // step  # of a group

    def part(number: Array, total: Array) -> Array:
        group, lane = div(number, parts), rem(number, parts) * step + jnp.arange(step)[None]
        pairs = codes[at[:, None], group, lane]
        zero = jnp.full((own,), 8.0, jnp.float32)  # codes are stored with 8 added
        if extra["zeros"] is not None:
            zero += extra["zeros"][at, group].astype(jnp.float32)
        numbers = pairs & 15, pairs >> 4
        sums = jnp.zeros((rows, own), jnp.float32)
        for n in range(2):
            weights = numbers[n].astype(jnp.float32) - zero[:, None]
            inputs = x[row, group * (2 * half) + n * half + lane]
            sums += plgpu.dot(inputs, weights.astype(x.dtype), trans_b=True, allow_tf32=False)
        return total + sums * scales[at, group].astype(jnp.float32)[None]

    most = max(1, _AT_ONCE * _FEWEST // rows)
    several = next(n for n in (_AT_ONCE, 2, 1) if n <= most and groups * parts % n == 0)

    def more(n: Array, total: Array) -> Array:
        for k in range(several):
            total = part(n * several + k, total)
        return total

    nothing = jnp.zeros((rows, own), jnp.float32)
    total = jax.lax.fori_loop(0, groups * parts // several, more, nothing)
    if extra["bias"] is not None:
        total = total + extra["bias"][at].astype(jnp.float32)[None]
    y[row, at[None]] = total.astype(y.dtype)
