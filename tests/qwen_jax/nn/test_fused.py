"""Kernels in the place of a network's norms and gated products change no answer."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.config import Config
from qwen_jax.nn import quant
from qwen_jax.nn.backends import XLA, Backend
from qwen_jax.nn.fused import GatedMLP, KernelNorm, KernelQuant, fused
from qwen_jax.nn.kv_cache import NoCache
from qwen_jax.nn.lora import Delta, LoraLinear
from qwen_jax.nn.model import MLP, Linear, LinearLayer, Qwen, RMSNorm, init
from qwen_jax.nn.quant import QuantLinear
from qwen_jax.nn.sharding import gathered, make_mesh, shardings
from qwen_jax.nn.tree import map_layers, named_layers, named_leaves
from tests.qwen_jax.networks import QWEN3, V1, distance

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


# --- integers in groups, under a mesh ---------------------------------------------------------
GROUPS = Config.from_hf(V1 | {"hidden_size": 512, "kv_channels": 128, "intermediate_size": 2048})


def coded_everywhere(bits: int) -> Qwen:
    """A network of integers in groups of 128, at rest; in `down` by importance."""
    random = init(GROUPS, jax.random.key(0))

    def change(name: str, layer: Linear) -> Any:
        if not name.startswith("blocks"):
            return layer
        made = quant.quantize(layer, bits, 128, False)
        if name.endswith("down"):
            made.order = jax.random.permutation(jax.random.key(1), made.inputs)
        return made

    return map_layers(change, random, Linear)


def biased(params: Qwen, where: Any) -> Qwen:
    """With a bias where devices add up what each makes of its inputs."""
    bias = jax.device_put(jnp.arange(GROUPS.width) / 1e3, where)
    change = lambda name, x: replace(x, bias=bias) if name.endswith("attn.out") else x
    return map_layers(change, params, QuantLinear)


@pytest.mark.parametrize(
    ("name", "bits", "mesh"),
    [
        ("mosaic", 4, {"data": 2, "tensor": 2}),  # both inputs are cut
        ("mosaic", 8, {"tensor": 8}),  # 4 groups of `out` are not
        ("triton", 4, {"fsdp": 2, "tensor": 4}),
    ],
)
def test_integers_in_groups_on_a_mesh(name: str, bits: int, mesh: dict[str, int]) -> None:
    """Every layer is a kernel's, and the answers are one device's."""
    platform = {"mosaic": "tpu", "triton": "gpu"}[name]
    rest, backend = coded_everywhere(bits), Backend(name, interpret=True)
    one = fused(biased(quant.arrange_all(rest, platform), jax.devices()[0]), backend)
    grid = make_mesh(**mesh, devices=jax.devices()[: math.prod(mesh.values())])
    formats = quant.formats_of(named_leaves(rest))
    placed = jax.device_put(rest, shardings(GROUPS, grid, formats))
    placed = biased(quant.arrange_all(placed, platform), NamedSharding(grid, P()))
    split = fused(gathered(placed, GROUPS, grid), replace(backend, mesh=grid))
    found = list(named_layers(split, QuantLinear).values())
    assert {type(layer) for layer in found} == {KernelQuant}
    each = 1 if mesh["tensor"] == 8 else 2
    assert sum(layer.cut[1] is not None for layer in found) == each * GROUPS.layers
    for rows in (4, 3):  # 3 are shared out by nobody
        assert distance(states(split, rows, 1), states(one, rows, 1)) < 2e-6


@pytest.mark.parametrize(("name", "change"), [("triton", halves), ("mosaic", None)])
def test_adapters_get_the_sums_of_a_kernel(name: str, change: Any) -> None:
    """In float32, before they are rounded."""
    bias = jnp.arange(32.0)
    linear = Linear(jax.random.normal(jax.random.key(0), (32, 256)), bias)
    layer = quant.arrange(quant.quantize(linear, 4, 128, False), "tpu")
    layer = change(linear) if change else layer
    fields = layer.codes, layer.scales, layer.zeros, None, layer.bias, layer.bits
    made = KernelQuant(*fields, Backend(name, interpret=True), P(None, None))
    x = jax.random.normal(jax.random.key(1), (3, 1, 256)).astype(jnp.bfloat16)
    assert made.float32(x).dtype == jnp.float32
    assert distance(made.float32(x), x.astype(jnp.float32) @ layer.kernel.T + bias) < 2e-6
    np.testing.assert_array_equal(made(x), made.float32(x).astype(jnp.bfloat16))
