"""Few rows with integer weights in groups on TPUs: one kernel, exact up to the order of sums.

A group's products with codes are summed in float32, and what its zeros are worth, before its scale
reaches them. Steps are tiles of outputs, and for each of them all groups, some at a time.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

MOST = 256  # rows
_OUTPUTS = 512  # of a step
_GROUPS = 32  # of a step: rows of a register of zeros


def fits(codes: Array) -> bool:
    """Whether these are groups apart, along whole registers."""
    return codes.dtype != jnp.uint8 and codes.ndim == 3 and codes.shape[2] % 128 == 0


@functools.partial(jax.jit, static_argnames=("dtype", "interpret"))
def product(
    x: Array,
    codes: Array,
    scales: Array,
    zeros: Array | None,
    bias: Array | None,
    *,
    dtype: Any = None,
    interpret: Any = False,
) -> Array:
    """x [M in] -> [M out] in `dtype`, default x's. codes [groups out size].

    scales and zeros [groups out], bias [out].
    """
    groups, outputs, size = codes.shape
    own, tile = min(groups, _GROUPS), min(_OUTPUTS, outputs)
    rows = x.shape[0]
    by_group = pl.BlockSpec((own, tile), lambda o, g: (g, o))
    extra = {"zeros": zeros, "bias": None if bias is None else bias[None]}
    specs = {
        "zeros": None if zeros is None else by_group,
        "bias": None if bias is None else pl.BlockSpec((1, tile), lambda o, g: (0, o)),
    }
    y: Array = pl.pallas_call(
        functools.partial(_product, size=size, groups=groups),
        grid=(pl.cdiv(outputs, tile), pl.cdiv(groups, own)),
        in_specs=[
            pl.BlockSpec((rows, own * size), lambda o, g: (0, g)),
            pl.BlockSpec((own, tile, size), lambda o, g: (g, o, 0)),
            by_group,
            specs,
        ],
        out_specs=pl.BlockSpec((rows, tile), lambda o, g: (0, o)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype or x.dtype),
        scratch_shapes=[pltpu.VMEM((rows, tile), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="quant_product",
    )(x, codes, jax.lax.bitcast_convert_type(scales, jnp.int16), extra)
    return y


def _product(
    x: Any, codes: Any, scales: Any, extra: Any, y: Any, total: Any, *, size: int, groups: int
) -> None:
    step = pl.program_id(1)
    factors = _float32(scales[...])
    zeros = None if extra["zeros"] is None else extra["zeros"][...].astype(jnp.float32)

    @pl.when(step == 0)
    def begin() -> None:
        total[...] = jnp.zeros_like(total)

    def add(group: int) -> None:
        part = x[:, group * size : (group + 1) * size]
        kernel = codes[group].astype(jnp.float32).astype(part.dtype)
        precise = jax.lax.Precision.HIGHEST if part.dtype == jnp.float32 else None
        over_in = (((1,), (1,)), ((), ()))
        sums = jax.lax.dot_general(
            part, kernel, over_in, precision=precise, preferred_element_type=jnp.float32
        )
        if zeros is not None:
            own = jnp.sum(part.astype(jnp.float32), axis=1, keepdims=True)
            sums = sums - own * zeros[group : group + 1]
        total[...] += sums * factors[group : group + 1]

    for group in range(codes.shape[0]):  # the last step may have fewer
        pl.when(step * codes.shape[0] + group < groups)(functools.partial(add, group))

    @pl.when(step == pl.num_programs(1) - 1)
    def end() -> None:
        found = total[...]
        if extra["bias"] is not None:
            found = found + extra["bias"][...].astype(jnp.float32)
        y[...] = found.astype(y.dtype)


def _float32(bits: Array) -> Array:
    """float16 by its bits, int16, which a TPU cannot load as what they are."""
    bits = bits.astype(jnp.int32)
    sign, rest = bits & 0x8000, bits & 0x7FFF
    normal = (sign << 16) | ((rest << 13) + ((127 - 15) << 23))
    small = rest.astype(jnp.float32) * 2.0**-24  # below 2^-14 float16 counts in these steps
    small = jnp.where(sign == 0, small, -small)
    return jnp.where(rest < 1 << 10, small, jax.lax.bitcast_convert_type(normal, jnp.float32))
