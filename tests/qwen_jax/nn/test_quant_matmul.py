"""Every platform's product of integers, run on a CPU, against float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from qwen_jax.nn import quant_matmul
from qwen_jax.nn.quant_matmul import apart, halved, paired, product, weight, whole
from tests.qwen_jax.networks import temporary_bytes

OUT, GROUPS, SIZE = 24, 6, 16
RECIPES = {name: getattr(quant_matmul, f"_on_{name}") for name in ("cpu", "gpu", "tpu")}
ROWS = (1, 3, 5, 65)  # either side of every recipe's limits


def case(
    rows: int,
    groups: int = GROUPS,
    bits: int = 4,
    zeros: bool = False,
    dtype: Any = jnp.float32,
    seed: int = 0,
) -> tuple[Any, ...]:
    """x, codes [out in], scales and zeros [out groups], and the product in float64."""
    random = np.random.default_rng(seed)
    inputs, half = GROUPS * SIZE, 2 ** (bits - 1)
    x = jnp.asarray(random.standard_normal((rows, inputs)), dtype)
    codes = random.integers(-half, half, (OUT, inputs))
    scales = random.uniform(0.5, 1, (OUT, groups)).astype(np.float16)
    offsets = random.integers(-half, half, (OUT, groups)) if zeros else 0 * codes[:, :groups]
    kernel = codes.reshape(OUT, groups, -1) - offsets[..., None]
    kernel = (kernel * scales[..., None].astype(np.float64)).reshape(OUT, inputs)
    wanted = np.asarray(x, np.float64) @ kernel.T
    made = jnp.asarray(codes, {4: jnp.int4, 8: jnp.int8}[bits])
    return x, made, jnp.asarray(scales), jnp.asarray(offsets, jnp.int8), kernel, wanted


def error(got: Array, wanted: np.ndarray) -> float:
    return np.abs(np.asarray(got, np.float64) - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("groups", [1, GROUPS])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("platform", RECIPES)
def test_recipes(platform: str, bits: int, groups: int) -> None:
    for rows in ROWS:
        x, codes, scales, _, _, wanted = case(rows, groups, bits)
        recipe = jax.jit(RECIPES[platform])
        assert error(recipe(x, codes, scales), wanted) < 5e-7
        assert error(recipe(x, apart(codes, groups), scales.T), wanted) < 5e-7
        if bits == 4:
            assert error(recipe(x, paired(codes), scales), wanted) < 5e-7
            assert error(recipe(x, halved(codes, groups), scales), wanted) < 5e-7
        x, codes, scales, _, _, wanted = case(rows, groups, bits, dtype=jnp.bfloat16)
        assert error(recipe(x, codes, scales), wanted) < 4e-3
        assert recipe(x, codes, scales).dtype == jnp.float32


def test_cpu_is_as_exact_as_float32_where_one_number_outshines_the_rest() -> None:
    x, codes, scales, _, kernel, _ = case(2)
    x = x.at[:, 7].mul(300)
    wanted = np.asarray(x, np.float64) @ kernel.T
    for form in (codes, paired(codes)):
        assert error(RECIPES["cpu"](x, form, scales), wanted) < 5e-7
        assert not RECIPES["cpu"](jnp.zeros_like(x), form, scales).any()


def test_pairs_where_integers_are_of_64_bits() -> None:
    x, codes, scales, _, _, wanted = case(2)
    with jax.enable_x64(True):
        got = RECIPES["cpu"](x, paired(codes), scales)
    assert error(got, wanted) < 5e-7
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("code", [-8, 7])
def test_sums_of_pairs_have_room(sign: int, code: int) -> None:
    """The largest sums there are: all codes at an end, all activations alike."""
    for inputs, groups in ((4096, 1), (4096, 32), (22, 1), (2 * 37, 1), (4, 2)):
        x = sign * jnp.linspace(3, 3.0001, inputs, dtype=jnp.float32)[None]
        codes = jnp.full((2, inputs), code, jnp.int4)
        scales = jnp.ones((2, groups), jnp.float16)
        wanted = code * np.asarray(x, np.float64).sum(-1, keepdims=True).repeat(2, 1)
        assert error(RECIPES["cpu"](x, paired(codes), scales), wanted) < 5e-7


@pytest.mark.parametrize("groups", [1, GROUPS])
@pytest.mark.parametrize("zeros", [False, True])
def test_product_and_its_gradient(groups: int, zeros: bool) -> None:
    for rows in ROWS:
        x, codes, scales, offsets, kernel, wanted = case(rows, groups, 4, zeros)
        offsets = offsets if zeros else None
        turned = None if offsets is None else offsets.T
        forms = [(codes, scales, offsets), (apart(codes, groups), scales.T, turned)]
        forms += [(x, scales, offsets) for x in (paired(codes), halved(codes, groups))]
        for form in forms:
            y, back = jax.vjp(lambda x, form=form: product(x, *form), x)
            assert error(y, wanted) < 5e-7
            dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
            assert error(back(dy)[0], np.asarray(dy, np.float64) @ kernel) < 5e-7


def test_gradient_has_the_type_of_x() -> None:
    x, codes, scales, _, kernel, _ = case(9, dtype=jnp.bfloat16)
    y, back = jax.vjp(lambda x: product(x, codes, scales, None), x)
    (dx,) = back(jnp.ones_like(y))
    assert dx.dtype == jnp.bfloat16
    assert error(dx, np.ones(y.shape) @ kernel) < 1e-2


def test_weight_is_exact() -> None:
    _, codes, scales, offsets, kernel, _ = case(1, bits=8, zeros=True)
    np.testing.assert_array_equal(weight(codes, scales, offsets), kernel)
    other = weight(apart(codes, GROUPS), scales.T, offsets.T)
    np.testing.assert_array_equal(other, kernel)
    np.testing.assert_array_equal(whole(apart(codes, GROUPS)), codes)
    _, codes, scales, offsets, kernel, _ = case(1, zeros=True)
    np.testing.assert_array_equal(weight(paired(codes), scales, offsets), kernel)
    np.testing.assert_array_equal(whole(paired(apart(codes, GROUPS))), codes)
    np.testing.assert_array_equal(whole(halved(paired(codes), GROUPS)), codes)
    np.testing.assert_array_equal(weight(halved(codes, GROUPS), scales, offsets), kernel)
    np.testing.assert_array_equal(apart(paired(codes), GROUPS), apart(codes, GROUPS))
    assert paired(codes).dtype == jnp.uint8
    assert paired(codes).nbytes == codes.size // 2


def test_no_recipe_keeps_an_expanded_copy() -> None:
    """Nor does a compiler widen constant codes once, before a loop of them."""
    inputs, out = 1024, 2048
    shape = jax.ShapeDtypeStruct
    forms: list[Any] = [(1, (out, inputs), jnp.int8), (8, (8, out, 128), jnp.int8)]
    forms += [(groups, (out, inputs // 2), jnp.uint8) for groups in (1, 8)]
    for groups, codes, kind in forms:

        def loop(x: Array, codes: Array, scales: Array) -> Array:
            step = lambda i, x: x + product(x, codes, scales, None)[:, :inputs].astype(x.dtype)
            return jax.lax.fori_loop(0, 4, step, x)

        scales = (8, out) if len(codes) == 3 else (out, groups)
        for rows in (1, 64):
            arguments = shape((rows, inputs), jnp.bfloat16), shape(codes, kind)
            compiled = jax.jit(loop).lower(*arguments, shape(scales, jnp.float16)).compile()
            assert temporary_bytes(compiled) < out * inputs
