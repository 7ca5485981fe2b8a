"""Products with weights, and sums along a row, in the form that suits each platform.

A row's bits do not depend on how many rows there are, where there are some: see `alike`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Outer = Callable[[Array, Array], Array]
_FEW = 4096  # numbers that XLA's CPU sums in another order


def row_sum(x: Array) -> Array:
    """The sum over the last axis.

    XLA's CPU sums in another order where there are few numbers in all, and a row's bits must not
    depend on how many rows there are: the few are filled up.
    """
    plain = lambda x: jnp.sum(x, axis=-1)
    least = -(-_FEW // x.shape[-1])  # rows
    if x.size >= least * x.shape[-1]:
        return plain(x)

    def filled(x: Array) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        y = plain(jnp.pad(rows, ((0, least - len(rows)), (0, 0))))
        return y[: len(rows)].reshape(x.shape[:-1])

    return jax.lax.platform_dependent(x, cpu=filled, default=plain)


def alike(dtype: DTypeLike) -> int:
    """Rows of a product of XLA's CPU from which on a row has the same bits, however many there are.

    One is summed in another order, and on processors that multiply tiles of bf16, two are as well.
    Three would do, but do not divide evenly over devices as powers of two do.
    """
    return 2 if dtype == jnp.float32 else 4


def outer(g: Array, x: Array) -> Array:
    """g [R out] with x [R in], summed over their rows -> float32 [out in]."""
    over_rows = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(g, x, over_rows, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Array, kernel: Array, outer: Outer = outer) -> Array:
    """x [... in] with kernel [out in] -> float32 [... out].

    Few rows are padded to as many as XLA's fast path takes: one row of bf16 is 12 times slower
    than two on a CPU, where float32 has a path for one; on a TPU eight rows fill a register.
    Gradients are products in the inputs' types too, which the float32 result would not give.
    outer: what the kernel's is computed by.
    """
    return _matmul(x, kernel)


def _matmul(x: Array, kernel: Array) -> Array:
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] >= 8:
        y = _product(rows, kernel)
    else:
        cpu = _padded(1 if x.dtype == jnp.float32 else alike(x.dtype))
        y = jax.lax.platform_dependent(rows, kernel, cpu=cpu, tpu=_padded(8), default=_product)
    return y.reshape(*x.shape[:-1], kernel.shape[0])


def _matmul_forward(x: Array, kernel: Array, _: Outer) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(x, kernel), (x, kernel)


def _matmul_backward(
    outer: Outer, inputs: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = inputs
    g = gradient.reshape(-1, kernel.shape[0]).astype(x.dtype)
    over_out = (((1,), (0,)), ((), ()))
    dx = jax.lax.dot_general(g, kernel, over_out, preferred_element_type=jnp.float32)
    dkernel = outer(g, x.reshape(-1, x.shape[-1]))
    return dx.reshape(x.shape).astype(x.dtype), dkernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def _product(x: Array, kernel: Array) -> Array:
    over_in = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, kernel, over_in, preferred_element_type=jnp.float32)


def _padded(least: int) -> Callable[[Array, Array], Array]:
    """The product of at least so many rows."""

    def product(x: Array, kernel: Array) -> Array:
        missing = max(0, least - x.shape[0])
        return _product(jnp.pad(x, ((0, missing), (0, 0))), kernel)[: x.shape[0]]

    return product
