"""Rotary positions: plain, dynamic NTK and YaRN, and the log-n scale of queries.

Everything here depends on a request's true length and true positions, which are data: no
result changes with padding, batching, chunking or sharding.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.config import Config, Yarn

_OCTAVES = 24  # doublings of the trained length with a table of their own: past any real text


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Where:
    """Where the tokens of a call stand, and what that does to queries and keys."""

    positions: Array  # [B T]
    angles: tuple[Array, Array]
    query_scale: Array | None  # log-n's; None: it is off

    @staticmethod
    def of(config: Config, positions: Array, prompt_lengths: Array) -> "Where":
        """positions [B T], prompt_lengths [B]."""
        scale = None if config.logn_length is None else log_n(config, positions)
        return Where(positions, angles(config, positions, prompt_lengths), scale)


def angles(config: Config, positions: Array, prompt_lengths: Array) -> tuple[Array, Array]:
    """cos and sin [B T 1 H/2], float32, for positions [B T] int32.

    prompt_lengths [B]: tokens each request had when it was prefilled. Dynamic NTK takes its
    alpha from it and keeps it while generating, even past the trained length.
    """
    speeds = jnp.asarray(_speeds(config))[octave(config, prompt_lengths)]  # [B H/2]
    angle = positions[:, :, None, None].astype(jnp.float32) * speeds[:, None, None, :]
    scale = 1.0 if config.yarn is None else config.yarn.attention_factor
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn the two halves of each head. x [B T N H]; computed in float32, returned in x's type."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def log_n(config: Config, positions: Array) -> Array:
    """Query factor ln(p) / ln(S) for the p-th token once p passes S, else 1. [B T 1 1] float32."""
    assert config.logn_length is not None
    table_end = jnp.log(positions.astype(jnp.float32) + 1) / math.log(config.logn_length)
    return jnp.maximum(table_end, 1.0)[:, :, None, None]


def octave(config: Config, lengths: Array) -> Array:
    """How many doublings of the trained length a text of `lengths` tokens needs, 0 if it fits."""
    if config.ntk_length is None:
        return jnp.zeros_like(lengths)
    ends = np.minimum(config.ntk_length * 2 ** np.arange(_OCTAVES, dtype=np.int64), 2**31 - 1)
    # counting in integers: log2 in float32 errs at the exact powers of two
    return jnp.sum(lengths[..., None] > ends.astype(np.int32), axis=-1, dtype=jnp.int32)


def _speeds(config: Config) -> np.ndarray:
    """Radians per token of each pair of dimensions, a row per octave: [1 or octaves + 1, H/2].

    Octave n has alpha = 2^(n+1) - 1, the original's max(2^ceil(log2(length / S) + 1) - 1, 1),
    and base * alpha^(H / (H - 2)). On the host, in the original's order and precision.
    """
    octaves = 1 if config.ntk_length is None else _OCTAVES + 1
    size = config.head_dim
    alphas = [2.0 ** (n + 1) - 1 if n else 1.0 for n in range(octaves)]
    bases = [config.rope_base * alpha ** (size / (size - 2)) for alpha in alphas]
    speeds = np.stack([_inverse_powers(base, size) for base in bases])
    return speeds if config.yarn is None else _yarn(config.yarn, config.rope_base, size, speeds)


def _inverse_powers(base: float, size: int) -> np.ndarray:
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.float32(1) / np.power(np.float32(base), exponents)


def _yarn(yarn: Yarn, base: float, size: int, speeds: np.ndarray) -> np.ndarray:
    """Fast dimensions stay, slow ones are stretched by `factor`, those between are blended."""

    def dimension(turns: float) -> float:  # the dimension that makes so many turns over the text
        return size * math.log(yarn.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = (high - low) or 0.001  # the limit of an infinitely steep ramp
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / width, 0, 1)
    stretched = speeds / np.float32(yarn.factor)
    return (stretched * ramp + speeds * (1 - ramp)).astype(np.float32)
