"""Angles against the formulas they come from, in float64."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.config import Config
from qwen_jax.nn import rope
from tests.qwen_jax.networks import QWEN3, V1
from tests.reference import _modern_inv_freq

S = 8
CONFIG = Config.from_hf(V1 | {"hidden_size": 512, "kv_channels": 128, "seq_length": S})


def original_alpha(length: int, trained: int) -> int:
    return max(2 ** math.ceil(math.log2(length / trained) + 1) - 1, 1)


def angles(
    config: Config, positions: list[int] | np.ndarray, prompt_length: int
) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = rope.angles(config, jnp.asarray([positions]), jnp.asarray([prompt_length]))
    assert cos.dtype == sin.dtype == jnp.float32
    return np.asarray(cos[0, :, 0], np.float64), np.asarray(sin[0, :, 0], np.float64)


def speeds(config: Config, prompt_length: int) -> np.ndarray:
    """Radians per token, from the turn of the first one."""
    cos, sin = angles(config, [1], prompt_length)
    return np.arctan2(sin, cos)[0]


@pytest.mark.parametrize("trained", [S, 2048, 8192])
def test_octaves_are_the_originals_alphas(trained: int) -> None:
    lengths = np.unique(
        [*range(1, 40 * trained, max(1, trained // 37)), *(trained << np.arange(6))]
    )
    lengths = np.unique([*lengths, *(lengths + 1)])
    config = Config.from_hf(V1 | {"seq_length": trained})
    octaves = np.asarray(rope.octave(config, jnp.asarray(lengths)))
    assert [2 ** (n + 1) - 1 for n in octaves.tolist()] == [
        original_alpha(int(length), trained) for length in lengths
    ]


@pytest.mark.parametrize("prompt_length", [1, S, S + 1, 2 * S, 2 * S + 1, 40 * S])
def test_speeds_of_dynamic_ntk(prompt_length: int) -> None:
    base = 10000.0 * original_alpha(prompt_length, S) ** (128 / 126)
    wanted = base ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(speeds(CONFIG, prompt_length), wanted, rtol=2e-6)


@pytest.mark.parametrize(("length", "base"), [(9, 30527.7367), (17, 72195.8601), (33, 156588.3235)])
def test_bases_of_the_specification(length: int, base: float) -> None:
    last = speeds(CONFIG, length)[-1]  # base ** (-126 / 128)
    assert last ** (-128 / 126) == pytest.approx(base, rel=1e-5)


def test_ntk_off_keeps_the_base() -> None:
    config = Config.from_hf(V1 | {"use_dynamic_ntk": False})
    wanted = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(speeds(config, 100 * S), wanted, rtol=2e-6)


def test_rows_have_their_own_alpha() -> None:
    positions = jnp.tile(jnp.arange(5), (3, 1))
    together = rope.angles(CONFIG, positions, jnp.array([S, 3 * S, 9 * S]))
    for row, length in enumerate([S, 3 * S, 9 * S]):
        alone = rope.angles(CONFIG, positions[:1], jnp.array([length]))
        np.testing.assert_array_equal(together[0][row], alone[0][0])
        np.testing.assert_array_equal(together[1][row], alone[1][0])


@pytest.mark.parametrize("prompt_length", [S, 40000])
def test_far_positions(prompt_length: int) -> None:
    """Past 32767, where the original's tables end; a float32 angle has 2e-3 left there."""
    positions = np.array([0, 1, 32766, 32767, 32768, 40000])
    cos, sin = angles(CONFIG, positions, prompt_length)
    base = 10000.0 * original_alpha(prompt_length, S) ** (128 / 126)
    wanted = positions[:, None] * base ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(cos, np.cos(wanted), atol=4e-3)
    np.testing.assert_allclose(sin, np.sin(wanted), atol=4e-3)


@pytest.mark.parametrize(
    ("trained", "count", "factor"),
    [
        (8192, 1, 1.0),
        (8192, 8192, 1.0),
        (8192, 8193, 1.0000135),
        (8192, 16384, 1.0769231),
        (8192, 32767, 1.1538428),
        (8192, 40000, math.log(40000) / math.log(8192)),
        (2048, 4096, 1.0909091),
        (2048, 8192, 1.1818182),
    ],
)
def test_log_n(trained: int, count: int, factor: float) -> None:
    """The factor of the count-th token, which stands at position count - 1."""
    config = Config.from_hf(V1 | {"seq_length": trained})
    scale = rope.log_n(config, jnp.asarray([[count - 1]]))
    assert scale.shape == (1, 1, 1, 1)
    assert float(scale[0, 0, 0, 0]) == pytest.approx(factor, abs=3e-7)


YARNS = [  # the last is a step: its ramp has no width
    {"factor": 4.0, "original_max_position_embeddings": 64},
    {"factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 16, "beta_slow": 2},
    {"factor": 2.0, "original_max_position_embeddings": 32768, "attention_factor": 1.25},
    {"factor": 4.0, "original_max_position_embeddings": 4, "beta_fast": 0.65, "beta_slow": 0.65},
]


@pytest.mark.parametrize("scaling", YARNS)
@pytest.mark.parametrize("head_dim", [12, 64, 128])
def test_yarn(scaling: dict[str, Any], head_dim: int) -> None:
    hf = QWEN3 | {"head_dim": head_dim, "rope_theta": 1e6}
    hf |= {"rope_scaling": {"type": "yarn"} | scaling}
    wanted, magnitude = _modern_inv_freq(hf, head_dim)
    cos, sin = angles(Config.from_hf(hf), [1, 3], 5)
    np.testing.assert_allclose(np.hypot(cos, sin), magnitude, rtol=1e-6)
    np.testing.assert_allclose(np.arctan2(sin, cos)[0], wanted, rtol=3e-6)


def test_yarn_without_a_ramp() -> None:
    """Equal betas and no rounding: a step between dimensions, at 11.74 here."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}
    scaling |= {"beta_fast": 1, "beta_slow": 1, "truncate": False}
    hf = QWEN3 | {"head_dim": 64, "rope_theta": 1e6, "rope_scaling": scaling}
    wanted = 1e6 ** (-np.arange(0, 64, 2) / 64) / np.where(np.arange(32) > 11.74, 4, 1)
    np.testing.assert_allclose(speeds(Config.from_hf(hf), 5), wanted, rtol=3e-6)


def test_rotate_turns_the_halves() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    angle = np.random.default_rng(1).normal(size=(2, 3, 1, 4))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)
    rotate = functools.partial(rope.rotate, cos=jnp.cos(angle), sin=jnp.sin(angle))
    wanted = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(rotate(jnp.asarray(x)), wanted, atol=2e-6)
    half = rotate(jnp.asarray(x, jnp.bfloat16))  # turned in float32, rounded once
    assert half.dtype == jnp.bfloat16
    exact = np.asarray(rotate(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)))
    np.testing.assert_array_equal(np.asarray(half), exact.astype(half.dtype))
