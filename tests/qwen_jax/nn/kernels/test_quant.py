"""Products with integers in groups, in one kernel, interpreted, against float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # who counts races
from jax.experimental.pallas import tpu as pltpu

from qwen_jax.nn.kernels import mosaic_quant, triton_int4
from qwen_jax.nn.quant_matmul import apart, halved, weight


def case(seed: int, rows: int, outputs: int, groups: int, size: int, **how: Any) -> tuple[Any, ...]:
    """x [M in], codes in whole rows, scales, zeros or None, and the product in float64."""
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((rows, groups * size)), how.get("dtype", "bfloat16"))
    least = -(2 ** (how.get("bits", 4) - 1))
    codes = random.integers(least, -least, (outputs, groups * size))
    scales = random.uniform(0.5, 1, (outputs, groups)).astype(np.float16)
    zeros = random.integers(-8, 8, (outputs, groups)) if how.get("zeros", True) else None
    kernel = codes.reshape(outputs, groups, size).astype(np.float64)
    kernel = (kernel - (0 if zeros is None else zeros[..., None])) * scales[..., None]
    wanted = np.asarray(x.astype(jnp.float32), np.float64) @ kernel.reshape(outputs, -1).T
    made = None if zeros is None else jnp.asarray(zeros, jnp.int8)
    return x, jnp.asarray(codes, f"int{how.get('bits', 4)}"), jnp.asarray(scales), made, wanted


def far(got: Any, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(got, np.float64) - wanted).max() / np.abs(wanted).max())


SHAPES: list[dict[str, Any]] = [
    {"rows": 1, "outputs": 40, "groups": 3, "size": 128},
    {"rows": 5, "outputs": 17, "groups": 4, "size": 32, "zeros": False},
    {"rows": 17, "outputs": 33, "groups": 2, "size": 192},
    {"rows": 150, "outputs": 140, "groups": 2, "size": 64},
]
TILES: list[dict[str, Any]] = [
    {"rows": 3, "outputs": 520, "groups": 33, "size": 128},
    {"rows": 20, "outputs": 96, "groups": 8, "size": 128, "zeros": False},
    {"rows": 4, "outputs": 40, "groups": 3, "size": 256, "bits": 8},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gpus_product(shape: dict[str, Any]) -> None:
    """As exact in bfloat16 as in float32: nothing but the result is rounded."""
    x, codes, scales, zeros, wanted = case(0, **shape, dtype="float32")
    x = x.astype(jnp.bfloat16).astype(jnp.float32)
    wanted = case(0, **shape)[-1]
    bias = jnp.arange(len(codes), dtype=jnp.float32)
    how = {"interpret": True}
    halves = halved(codes, shape["groups"])
    y = triton_int4.product(x, halves, scales, zeros, bias, **how)
    assert far(y, wanted + np.arange(len(codes))) < 5e-7
    short = triton_int4.product(x.astype(jnp.bfloat16), halves, scales, zeros, bias, **how)
    np.testing.assert_array_equal(np.asarray(short), np.asarray(y.astype(jnp.bfloat16)))
    alone = triton_int4.product(x[-1:], halves, scales, zeros, bias, **how)
    np.testing.assert_array_equal(np.asarray(alone[0]), np.asarray(y[-1]))


@pytest.mark.parametrize("shape", [s for s in SHAPES if s["size"] == 128] + TILES, ids=str)
def test_a_tpus_product(shape: dict[str, Any]) -> None:
    """Groups and outputs that fill no step: what lies past them is NaN, and read by nobody."""
    x, codes, scales, zeros, _ = case(0, **shape)
    scales = scales.at[0].mul(2.0**-14).at[1].mul(-1)  # subnormal, and below zero
    kernel = np.asarray(weight(codes, scales, zeros), np.float64)
    x = x.astype(jnp.float32)
    bias = jnp.arange(len(codes), dtype=jnp.float32)
    turned = apart(codes, shape["groups"]), scales.T, None if zeros is None else zeros.T, bias
    y = mosaic_quant.product(x, *turned, interpret=True)
    assert far(y, np.asarray(x, np.float64) @ kernel.T + np.arange(len(codes))) < 2e-6
    alone = mosaic_quant.product(x[-1:], *turned, interpret=True)
    assert far(alone, np.asarray(y[-1:])) < 1e-6
    short = mosaic_quant.product(x.astype(jnp.bfloat16), *turned, dtype="float32", interpret=True)
    assert far(short, np.asarray(y)) < 2e-6  # nothing but the result is rounded


def test_no_race_on_a_tpu() -> None:
    """With outputs in any order, and memory that is NaN before it is written."""
    x, codes, scales, zeros, wanted = case(0, 3, 520, 33, 128)
    how = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", random_seed=1)
    turned = apart(codes, 33), scales.T, zeros.T, None
    y = mosaic_quant.product(x, *turned, dtype="float32", interpret=how)
    assert far(y, wanted) < 2e-6
    races = interpret_pallas_call.races
    assert races is not None
    assert not races.races_found


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_they_lower(platform: str) -> None:
    x, codes, scales, zeros, _ = case(0, 8, 64, 2, 128)
    asked: Any = x, halved(codes, 2), scales, zeros, None
    product, target = triton_int4.product, "__gpu$xla.gpu.triton"
    if platform == "tpu":
        asked = x, apart(codes, 2), scales.T, zeros.T, None
        product, target = mosaic_quant.product, "tpu_custom_call"
    checks = [jax.export.DisabledSafetyCheck.custom_call(target)]
    exported = jax.export.export(product, platforms=[platform], disabled_checks=checks)
    assert exported(*asked).mlir_module().count(f"@{target}") == 1
