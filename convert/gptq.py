"""Codes that keep a layer's outputs, not its weights (GPTQ, arXiv 2210.17323).

Inputs are rounded one after the other; what one loses, those after it make up for, as far as the
calibration inputs' second moments say that they can.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qwen_jax.nn.model import Linear
from qwen_jax.nn.quant import CODES, QuantLinear, encode, grid, group_size

DAMP = 0.01  # of the mean second moment, as in the original
Triple = tuple[Array, Array, Array]


def solve(
    linear: Linear, moments: Array, bits: int, group: int | None, symmetric: bool, act_order: bool
) -> Any:
    """A QuantLinear for inputs x whose sum of x xᵀ is `moments` [in in].

    act_order: inputs are rounded, and share scales, in the order of their energy.
    """
    inputs = linear.kernel.shape[1]
    size = group_size(linear.kernel.shape, group)
    block = next(n for n in range(min(size, 128), 0, -1) if size % n == 0)
    kernel = linear.kernel.astype(jnp.float32)
    order = jnp.argsort(-jnp.diag(moments)).astype(jnp.int32) if act_order else None
    if order is not None:
        kernel, moments = kernel[:, order], moments[order][:, order]
    codes, scales, zeros = _solve(kernel, moments, bits, size, block, symmetric)
    codes = codes.reshape(-1, inputs).astype(CODES[bits])
    return QuantLinear(codes, scales, None if symmetric else zeros, order, linear.bias, bits)


@functools.partial(jax.jit, static_argnames=("bits", "size", "block", "symmetric"))
def _solve(
    kernel: Array, moments: Array, bits: int, size: int, block: int, symmetric: bool
) -> Triple:
    """float32 codes [out in], scales and zeros [out groups]."""
    out, inputs = kernel.shape
    dead = jnp.diag(moments) == 0  # inputs that are always 0: their weights do not matter
    kernel = jnp.where(dead, 0.0, kernel)
    factor = _factor(moments + jnp.diag(dead.astype(jnp.float32)))

    def by_group(columns: Array) -> tuple[Array, Array]:
        scales, zeros = grid(columns, bits, symmetric)
        return scales, jnp.zeros(out, jnp.int8) if zeros is None else zeros

    def one_block(carry: Triple, start: Array) -> tuple[Triple, Triple]:
        kernel, scales, zeros = carry
        columns = jax.lax.dynamic_slice_in_dim(kernel, start, size, axis=1)
        fresh = by_group(columns)
        scales, zeros = (
            jnp.where(start % size == 0, new, old)
            for new, old in zip(fresh, (scales, zeros), strict=True)
        )
        rows = jax.lax.dynamic_slice_in_dim(factor, start, block, axis=0)
        corner = jax.lax.dynamic_slice_in_dim(rows, start, block, axis=1)
        columns = jax.lax.dynamic_slice_in_dim(kernel, start, block, axis=1)
        codes, lost = _round_block(columns, corner, scales, zeros, bits)
        kernel = kernel - jnp.dot(lost, rows, precision="highest")
        return (kernel, scales, zeros), (codes, scales, zeros)

    blank = jnp.ones(out, jnp.float16), jnp.zeros(out, jnp.int8)
    starts = jnp.arange(0, inputs, block)
    _, (codes, scales, zeros) = jax.lax.scan(one_block, (kernel, *blank), starts)
    each = size // block  # blocks of a group
    return codes.swapaxes(0, 1).reshape(out, inputs), scales[::each].T, zeros[::each].T


def _factor(moments: Array) -> Array:
    """The upper Cholesky factor of the damped inverse."""
    size = len(moments)
    damped = moments + DAMP * jnp.mean(jnp.diag(moments)) * jnp.eye(size)
    lower = jnp.linalg.cholesky(damped)
    inverse = jax.scipy.linalg.cho_solve((lower, True), jnp.eye(size))
    return jnp.linalg.cholesky(inverse).T


def _round_block(
    columns: Array, corner: Array, scales: Array, zeros: Array, bits: int
) -> tuple[Array, Array]:
    """columns [out block] -> codes, and what rounding lost for the columns after the block."""
    wide, offset = scales.astype(jnp.float32), zeros.astype(jnp.float32)

    def one(i: int, carry: Triple) -> Triple:
        columns, codes, lost = carry
        column = columns[:, i]
        code = encode(column, wide, offset, bits)
        loss = (column - (code - offset) * wide) / corner[i, i]
        columns = columns - loss[:, None] * corner[i]
        return columns, codes.at[:, i].set(code), lost.at[:, i].set(loss)

    blank = jnp.zeros_like(columns)
    _, codes, lost = jax.lax.fori_loop(0, columns.shape[1], one, (columns, blank, blank))
    return codes, lost
