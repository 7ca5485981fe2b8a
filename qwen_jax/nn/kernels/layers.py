"""What a decode step has around its attention, for few rows on NVIDIA GPUs: a kernel each.

Every program has some outputs of all rows and adds over the inputs in one order: what a row gets
does not depend on the rows beside it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

MOST = 64  # rows
_FEWEST = 16  # rows of a product: what a tensor core takes
_OUTPUTS = 32  # of a program
_INPUTS = 128  # of a step


def fits(inputs: int) -> bool:
    """Whether a product over so many inputs goes in whole steps."""
    return inputs % _FEWEST == 0


@functools.partial(jax.jit, static_argnames="interpret")
def gated(
    x: Array,
    gate: Array,
    up: Array,
    scales: tuple[Array, Array] | None = None,
    *,
    interpret: bool = False,
) -> Array:
    """silu(x gate) * (x up), both products in one. x [M D], gate and up [F D] -> [M F].

    scales: of int8 gate and up, [F 1].
    """
    rows, inputs = x.shape
    outputs = gate.shape[0]
    step = next(n for n in (_INPUTS, 64, 32, _FEWEST) if inputs % n == 0)
    arguments = (x, gate, up, *(scales or ()))
    return pl.pallas_call(
        functools.partial(_gated, rows=max(_FEWEST, pl.next_power_of_2(rows)), step=step),
        grid=(pl.cdiv(outputs, _OUTPUTS),),
        in_specs=[pl.no_block_spec] * len(arguments),
        out_specs=pl.no_block_spec,
        out_shape=jax.ShapeDtypeStruct((rows, outputs), x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=4),
        interpret=interpret,
        name="gated",
    )(*arguments)


def _gated(x: Any, gate: Any, up: Any, *refs: Any, rows: int, step: int) -> None:
    *scales, y = refs
    # past the end the last one again, which gives the same numbers at the same place
    row = jnp.minimum(jnp.arange(rows), x.shape[0] - 1)[:, None]
    own = pl.program_id(0) * _OUTPUTS + jnp.arange(_OUTPUTS)
    own = jnp.minimum(own, gate.shape[0] - 1)[:, None]

    def more(n: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        at = n * step + jnp.arange(step)[None]
        part = x[row, at]

        def add(total: Array, ref: Any) -> Array:
            kernel = ref[own, at].astype(part.dtype)
            y = plgpu.dot(part, kernel, trans_b=True, allow_tf32=False)
            return total + y.astype(jnp.float32)

        return add(sums[0], gate), add(sums[1], up)

    none = jnp.zeros((rows, _OUTPUTS), jnp.float32)
    sums = jax.lax.fori_loop(0, x.shape[1] // step, more, (none, none))
    if scales:
        factors = (ref[own[:, 0], 0].astype(jnp.float32) for ref in scales)
        sums = tuple(total * factor[None] for total, factor in zip(sums, factors, strict=True))
    a, b = (total.astype(y.dtype).astype(jnp.float32) for total in sums)
    a = (a * jax.nn.sigmoid(a)).astype(y.dtype).astype(jnp.float32)
    y[row, own.T] = (a * b).astype(y.dtype)


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def normed(
    x: Array, y: Array | None, scale: Array, *, eps: float, interpret: bool = False
) -> tuple[Array, Array]:
    """x + y, x itself for None, and its RMSNorm. x and y [M D], scale [D] -> twice [M D]."""
    rows, width = x.shape
    terms = [x] if y is None else [x, y]
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype)] * len(terms)
    *added, norm = pl.pallas_call(
        functools.partial(_normed, eps=eps, padded=pl.next_power_of_2(width)),
        grid=(rows,),
        in_specs=[pl.no_block_spec] * (1 + len(terms)),
        out_specs=[pl.no_block_spec] * len(terms),
        out_shape=outputs,
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
        name="normed",
    )(scale, *terms)
    return added[0] if added else x, norm


def _normed(scale: Any, *refs: Any, eps: float, padded: int) -> None:
    terms, (*added, norm) = refs[: len(refs) // 2], refs[len(refs) // 2 :]
    row, width = pl.program_id(0), norm.shape[1]
    at = jnp.arange(padded)
    real = at < width
    at = jnp.minimum(at, width - 1)  # past the end the last one again, which weighs nothing
    x = terms[0][row, at]
    for term in terms[1:]:
        x = x + term[row, at]
    for sum_ref in added:
        sum_ref[row, at] = x
    wide = x.astype(jnp.float32)
    factor = jax.lax.rsqrt(jnp.sum(jnp.where(real, wide * wide, 0)) / width + eps)
    norm[row, at] = (wide * factor).astype(x.dtype) * scale[at]
