"""Kernels in the place of a network's norms and gated products change no answer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.config import Config
from qwen_jax.nn import quant
from qwen_jax.nn.backends import XLA, Backend
from qwen_jax.nn.fused import GatedMLP, KernelNorm, KernelQuant, fused
from qwen_jax.nn.kv_cache import NoCache
from qwen_jax.nn.lora import Delta, LoraLinear
from qwen_jax.nn.model import MLP, Linear, LinearLayer, Qwen, RMSNorm, init
from qwen_jax.nn.sharding import make_mesh, shardings
from qwen_jax.nn.tree import map_layers, named_layers
from tests.qwen_jax.networks import QWEN3, distance

CONFIG = Config.from_hf(QWEN3 | {"hidden_size": 64})
KERNELS = Backend("triton", interpret=True)


@pytest.fixture(scope="module")
def params() -> Qwen:
    return init(CONFIG, jax.random.key(0))


def states(params: Qwen, rows: int = 4, length: int = 3) -> np.ndarray:
    tokens = jnp.arange(rows * length).reshape(rows, length) * 7 % 96
    positions = jnp.tile(jnp.arange(length), (rows, 1))
    run = jax.jit(lambda params: params(tokens, positions, positions[:, -1], NoCache())[0])
    return np.asarray(run(params))


def kinds(params: Qwen, kind: type) -> dict[str, type]:
    return {name.split(".")[-1]: type(x) for name, x in named_layers(params, kind).items()}


def test_they_take_the_places(params: Qwen) -> None:
    """Of all but the norms of heads; and nowhere without kernels, or for many rows."""
    made = fused(params, KERNELS)
    assert kinds(made, MLP) == {"mlp": GatedMLP}
    heads = dict.fromkeys(("q_norm", "k_norm"), RMSNorm)
    others = dict.fromkeys(("attn_norm", "mlp_norm", "norm"), KernelNorm)
    assert kinds(made, RMSNorm) == heads | others
    assert distance(states(made), wanted := states(params)) < 2e-6
    assert fused(params, XLA) is params
    text = lambda params: str(jax.make_jaxpr(params.blocks[0].mlp)(jnp.zeros((65, 1, 64))))
    assert text(made) == text(params)
    assert np.isfinite(wanted).all()


def adapted(layer: Linear) -> Any:
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    out, inputs = layer.kernel.shape
    return LoraLinear(layer, (Delta(draw(1, 2, inputs), draw(2, out, 2), None, None, 1.0, 0.0),))


def coded(layer: Linear) -> Any:
    return quant.quantize(layer, 4, 16, False)


def halves(layer: Linear) -> Any:
    return quant.arrange(quant.quantize(layer, 4, 32, False), "gpu")


def whole(layer: Linear) -> Any:
    return quant.quantize(layer, 8, None, True)


def test_integers_by_channel_are_gated_too(params: Qwen) -> None:
    changed = map_layers(lambda _, layer: whole(layer), params, Linear)
    made = fused(changed, KERNELS)
    assert kinds(made, MLP) == {"mlp": GatedMLP}
    assert distance(states(made), states(changed)) < 2e-6


@pytest.mark.parametrize(("which", "change"), [("gate", adapted), ("up", coded), ("gate", halves)])
def test_adapters_and_integers_keep_their_arithmetic(
    params: Qwen, which: str, change: Callable[[Linear], Any]
) -> None:
    one = lambda name, layer: change(layer) if name == f"blocks.0.mlp.{which}" else layer
    changed = map_layers(one, params, Linear)
    wanted = states(changed)
    assert distance(wanted, states(params)) > 1e-4
    made = fused(changed, KERNELS)
    assert (KernelQuant in kinds(made, LinearLayer).values()) == (change is halves)
    assert distance(states(made), wanted) < 2e-6


def test_a_mesh_changes_no_bit(params: Qwen) -> None:
    """Rows over data, outputs over tensor; three rows, which data does not divide, stay whole."""
    mesh = make_mesh(data=2, tensor=4)
    placed = jax.device_put(params, shardings(params.config, mesh))
    split, norm = replace(KERNELS, mesh=mesh), params.norm
    mlp, whole = fused(placed, split).blocks[0].mlp, fused(params, KERNELS).blocks[0].mlp
    for rows in (4, 3):
        x = jax.random.normal(jax.random.key(1), (rows, 1, 64))
        np.testing.assert_array_equal(jax.jit(mlp.hidden)(x), jax.jit(whole.hidden)(x))
        own, other = (KernelNorm(norm.scale, norm.eps, b) for b in (split, KERNELS))
        for got, wanted in zip(own.after(x, x), other.after(x, x), strict=True):
            np.testing.assert_array_equal(got, wanted)
