"""Norms and the gated product in one kernel each, interpreted, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.nn.kernels import layers

BOUNDS = {"float32": 2e-5, "bfloat16": 2e-2}


def draw(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def wide(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32), np.float64)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "dtype"),
    [(1, 48, 40, "float32"), (5, 256, 33, "bfloat16"), (17, 64, 70, "float32")],
)
def test_gated(rows: int, inputs: int, outputs: int, dtype: str) -> None:
    x = draw(0, rows, inputs, dtype=dtype) * jnp.asarray(inputs**-0.5, dtype)
    gate, up = (draw(n, outputs, inputs, dtype=dtype) for n in (1, 2))
    y = layers.gated(x, gate, up, interpret=True)
    a, b = (wide(x) @ wide(kernel).T for kernel in (gate, up))
    assert y.dtype == dtype
    np.testing.assert_allclose(wide(y), a / (1 + np.exp(-a)) * b, rtol=0, atol=BOUNDS[dtype] * 4)
    alone = layers.gated(x[-1:], gate, up, interpret=True)
    np.testing.assert_array_equal(np.asarray(alone[0]), np.asarray(y[-1]))


def test_gated_of_integers() -> None:
    """With a scale for each output."""
    random, x = np.random.default_rng(0), draw(0, 3, 64, dtype="bfloat16")
    codes = [jnp.asarray(random.integers(-128, 128, (40, 64)), jnp.int8) for _ in range(2)]
    scales = [jnp.asarray(random.uniform(1, 2, (40, 1)) / 128, jnp.float16) for _ in range(2)]
    y = layers.gated(x, *codes, tuple(scales), interpret=True)
    a, b = (wide(x) @ (wide(c) * wide(s)).T for c, s in zip(codes, scales, strict=True))
    wanted = a / (1 + np.exp(-a)) * b
    np.testing.assert_allclose(wide(y), wanted, rtol=0, atol=2e-2 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normed(dtype: str) -> None:
    """A width that is no power of two."""
    x, y, scale = draw(0, 3, 96, dtype=dtype), draw(1, 3, 96, dtype=dtype), draw(2, 96, dtype=dtype)
    for other in (None, y):
        added, norm = layers.normed(x, other, scale, eps=1e-6, interpret=True)
        wanted = x if other is None else x + other
        np.testing.assert_array_equal(wide(added), wide(wanted))
        sums = wide(wanted)
        sums = sums / np.sqrt((sums**2).mean(-1, keepdims=True) + 1e-6) * wide(scale)
        np.testing.assert_allclose(wide(norm), sums, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


def test_they_lower() -> None:
    x, kernel = draw(0, 8, 128, dtype="bfloat16"), draw(1, 96, 128, dtype="bfloat16")
    codes, scales = kernel.astype(jnp.int8), jnp.ones((96, 1), jnp.float16)
    gated = jax.jit(layers.gated).trace(x, kernel, kernel)
    integers = jax.jit(layers.gated).trace(x, codes, codes, (scales, scales))
    normed = jax.jit(functools.partial(layers.normed, eps=1e-6)).trace(x, x, x[0])
    for traced in (gated, integers, normed):
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("@__gpu$xla.gpu.triton") == 1
