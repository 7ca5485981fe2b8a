"""Inputs that matter made large before they are rounded, and small where they come from (AWQ,
arXiv 2306.00978).

A channel's scale is its root mean square on the calibration texts to the power alpha, which is
searched for every group of layers that see the same inputs. It is divided out of the norm or the
layer before, so that the network as floats stays what it was.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convert.block import STAGES, get, lost
from qwen_jax.config import Config
from qwen_jax.nn.model import Block, Linear, RMSNorm
from qwen_jax.nn.quant import quantize

ALPHAS = 10  # 0, 0.1, ... 0.9: at 0 it is plain rounding
LARGEST = 1e4  # of scales to each other


def fold(
    block: Block, config: Config, dtype: Any, moments: Callable[[int], Array], *how: Any
) -> dict[str, float]:
    """Scale a float block's channels; returns what plain rounding would lose of each layer.

    moments: of a stage, the sum of x xᵀ over what its layers get. dtype: in which norms are stored.
    how: bits, group and whether symmetric, as `quantize` takes them.
    """
    before: dict[str, float] = {}
    for number, stage in enumerate(STAGES):
        seen, layers = moments(number), [get(block, name) for name in stage]
        heads = config.groups if stage == ("attn.out",) else 1  # that share their values
        kernels = tuple(layer.kernel for layer in layers)
        scales, plain = _search(kernels, seen, heads, config.head_dim, *how)
        before |= {name: float(share) for name, share in zip(stage, plain, strict=True)}
        scales = _divide(block, number, scales, config, dtype)
        for layer in layers:
            layer.kernel = layer.kernel * scales
    return before


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _search(
    kernels: tuple[Array, ...], moments: Array, heads: int, size: int, *how: Any
) -> tuple[Array, list[Array]]:
    """The scales [in] with which least is lost, and what each layer loses without any.

    heads: so many runs of `size` inputs come from the same outputs, and have the same scales.
    """
    energy = jnp.diag(moments)
    by_head = energy.reshape(-1, heads, size) if heads > 1 else energy.reshape(-1, 1, 1)
    root = jnp.sqrt(jnp.broadcast_to(by_head.mean(1, keepdims=True), by_head.shape)).reshape(-1)
    root = jnp.maximum(root / jnp.maximum(root.max(), 1e-30), 1 / LARGEST)

    def scaled(alpha: Array) -> Array:
        scales = root**alpha
        return scales / jnp.sqrt(scales.max() * scales.min())

    def shares(scales: Array) -> Array:
        made = (quantize(Linear(k * scales, None), *how).kernel / scales for k in kernels)
        return jnp.stack([lost(k, m, moments) for k, m in zip(kernels, made, strict=True)])

    alphas = jnp.arange(ALPHAS) / ALPHAS
    found = jax.lax.map(lambda alpha: shares(scaled(alpha)), alphas)  # [alphas layers]
    return scaled(alphas[found.sum(1).argmin()]), list(found[0])


def _divide(block: Block, number: int, scales: Array, config: Config, dtype: Any) -> Array:
    """Divide what a stage gets by its scales; returns them as a norm's few digits can be."""
    attn, mlp = block.attn, block.mlp
    if number in (0, 2):
        return _norm(block.attn_norm if number == 0 else block.mlp_norm, scales, dtype)
    if number == 3:
        mlp.up = Linear(mlp.up.kernel / scales[:, None], mlp.up.bias)
        return scales
    values = scales.reshape(config.kv_heads, -1, config.head_dim)[:, 0]
    by_head = (config.kv_heads, config.groups + 2, config.head_dim)

    def divided(x: Array) -> Array:
        x = x.reshape(*by_head, -1)
        return x.at[:, -1].divide(values[..., None])

    kernel, bias = attn.qkv.kernel, attn.qkv.bias
    if bias is not None:
        bias = divided(bias).reshape(bias.shape).astype(dtype).astype(jnp.float32)
    attn.qkv = Linear(divided(kernel).reshape(kernel.shape), bias)
    return scales


def _norm(norm: RMSNorm, scales: Array, dtype: Any) -> Array:
    made = (norm.scale / scales).astype(dtype).astype(jnp.float32)
    scales = jnp.where(made == 0, 1, norm.scale / jnp.where(made == 0, 1, made))
    norm.scale = jnp.where(made == 0, norm.scale, made)
    return scales
