"""Quantised layers in Linear's place: exact, on any mesh, in a scan, under adapters."""

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import PartitionSpec as P

from qwen_jax.checkpoint import load, save
from qwen_jax.config import Config
from qwen_jax.decoding import aot, decode, prompts
from qwen_jax.decoding.flat_params import Program, flatten
from qwen_jax.nn import quant
from qwen_jax.nn.lora import Delta, LoraLinear, fuse
from qwen_jax.nn.model import Linear, Qwen, init
from qwen_jax.nn.quant import QuantLinear, arrange, arrange_all, at_rest, dequantize, quantize
from qwen_jax.nn.sharding import make_mesh, shardings
from qwen_jax.nn.tree import map_linears, named_leaves
from qwen_jax.storage import native
from tests.qwen_jax.networks import QWEN2, V1, distance

BIG = V1 | {"hidden_size": 64, "kv_channels": 16, "intermediate_size": 128, "num_hidden_layers": 2}
NETWORKS = {"v1": BIG, "grouped": QWEN2 | {"hidden_size": 64, "num_attention_heads": 8}}
IDS = np.array([[5, 6, 7, 8, 9, 10, 11, 12]])
PLATFORMS = ("cpu", "gpu", "tpu")


def formats(params: Any) -> Any:
    return quant.formats_of(named_leaves(params))


def linear(out: int = 24, inputs: int = 64, bias: bool = True, seed: int = 0) -> Linear:
    random = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    return Linear(array(out, inputs), array(out) if bias else None)


@functools.cache
def network(
    name: str, bits: int = 4, symmetric: bool = False, group: int | None = 16
) -> tuple[Qwen, Qwen]:
    """Random parameters quantised in groups of 16, or of all inputs, and their float twin."""
    params = init(Config.from_hf(NETWORKS[name]), jax.random.key(1))
    params = map_linears(lambda _, x: quantize(x, bits, group, symmetric), params)
    return params, map_linears(lambda _, x: dequantize(x), params)


# --- one layer --------------------------------------------------------------------------------
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [16, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_rounds_to_the_nearest_code(bits: int, group: int | None, symmetric: bool) -> None:
    layer = linear()
    made = quantize(layer, bits, group, symmetric)
    assert made.codes.dtype == {4: jnp.int4, 8: jnp.int8}[bits]
    assert made.scales.dtype == jnp.float16
    assert (made.zeros is None) == symmetric
    assert made.bias is layer.bias
    sizes = np.abs(np.asarray(made.scales, np.float32))
    step = np.repeat(sizes, 64 // made.scales.shape[1], axis=1)
    # a grid ends half a step before the largest weight, one before the other end; float16 rounds
    bound = (0.5 + 0.5 * symmetric + 2**bits / 2**11) * step
    assert (np.abs(dequantize(made).kernel - layer.kernel) <= bound).all()
    reach = np.abs(np.asarray(layer.kernel)).reshape(24, -1, group or 64).max(-1)
    assert (sizes <= 1.001 * 2 * reach / (2**bits - 1)).all()


def test_a_symmetric_grid_is_the_nearer_of_two() -> None:
    """llama.cpp's Q4_0 (the largest weight is code -8), or one that reaches as far both ways."""
    kernel = np.asarray(linear().kernel, np.float32)
    groups = kernel.reshape(-1, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], 1)
    ends: Any = (x.astype(np.float16) for x in (largest / -8, np.abs(largest) / 7.5))
    grids = (np.clip(np.round(groups / scales), -8, 7) * scales for scales in ends)
    lost = [((nearest - groups) ** 2).sum(-1) for nearest in grids]
    made = np.asarray(quantize(linear(), 4, 32, True).kernel).reshape(-1, 32)
    np.testing.assert_allclose(((made - groups) ** 2).sum(-1), np.minimum(*lost), rtol=1e-2)
    assert min(np.argmin(lost, axis=0).sum(), np.argmax(lost, axis=0).sum()) > 5


def test_quantize_zeros_and_constants() -> None:
    kernel = jnp.zeros((4, 32)).at[1].set(3.0).at[2].set(-3.0).at[3, :16].set(1e-9)
    for symmetric in (True, False):
        made = dequantize(quantize(Linear(kernel, None), 8, 16, symmetric)).kernel
        np.testing.assert_allclose(made, kernel, atol=0.013)
        assert not np.isnan(made).any()


@pytest.mark.parametrize("group", [0, 24, 128])
def test_groups_that_do_not_fit(group: int) -> None:
    with pytest.raises(ValueError, match=f"groups of {group} do not divide 64 inputs.*64"):
        quantize(linear(), 4, group, True)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_call(platform: str) -> None:
    for bits, group, symmetric in ((4, 16, False), (8, None, True), (8, 32, False)):
        made = quantize(linear(), bits, group, symmetric)
        twin, placed = dequantize(made), arrange(made, platform)
        x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 64)), jnp.float32)
        assert distance(placed(x), twin(x)) < 5e-7
        low = x.astype(jnp.bfloat16)
        assert placed(low).dtype == jnp.bfloat16
        assert placed.float32(low).dtype == jnp.float32
        assert distance(placed.float32(low), twin(low.astype(jnp.float32))) < 5e-3


def test_order() -> None:
    made, order = quantize(linear(), 4, 16, False), np.random.default_rng(0).permutation(64)
    kernel = dequantize(made).kernel
    made.order = jnp.asarray(order, jnp.int32)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 64)), jnp.float32)
    assert made.bias is not None
    wanted = x[:, order] @ kernel.T + made.bias
    assert distance(made(x), wanted) < 5e-7
    assert distance(dequantize(made)(x), wanted) < 5e-7
    dx = jax.grad(lambda x: made(x).sum())(x)
    assert distance(dx, jax.grad(lambda x: dequantize(made)(x).sum())(x)) < 5e-7


@pytest.mark.parametrize("group", [16, None])
def test_arrangements_hold_the_same(group: int | None) -> None:
    made = quantize(linear(), 4, group, False)
    for platform in PLATFORMS:
        placed = arrange(made, platform)
        assert placed.codes.dtype == (jnp.uint8 if platform == "cpu" else jnp.int4)
        assert placed.codes.ndim == (3 if group and platform == "tpu" else 2)
        assert placed.inputs == made.inputs == 64
        for back in (at_rest(placed), at_rest(arrange(arrange(placed, "tpu"), platform))):
            for name, leaf in named_leaves(made).items():
                other = named_leaves(back)[name]
                assert other.dtype == leaf.dtype
                np.testing.assert_array_equal(other, leaf)


# --- a network --------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_tokens(name: str, bits: int) -> None:
    params, twin = network(name, bits)
    assert distance(decode.score(params, IDS), decode.score(twin, IDS)) < 5e-6


def test_scan_and_its_gradient() -> None:
    """Stacked blocks in a loop whose body is computed again: how training runs them."""
    layers = [arrange(quantize(linear(64, 64, seed=i), 4, 16, False), "cpu") for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

    def loop(x: Array) -> Array:
        body = jax.checkpoint(lambda layer, x: jnp.tanh(0.1 * layer(x)))
        return jax.lax.scan(lambda x, layer: (body(layer, x), None), x, stacked)[0].sum()

    def unrolled(x: Array) -> Array:
        for layer in layers:
            x = jnp.tanh(0.1 * dequantize(layer)(x))
        return x.sum()

    x = linear(6, 64).kernel
    assert distance(jax.grad(loop)(x), jax.grad(unrolled)(x)) < 5e-6


def test_adapters_on_quantised_layers() -> None:
    """Only the adapter has gradients, and nothing is merged into integers."""
    params, _ = network("v1")
    random = np.random.default_rng(0)

    def adapt(_: str, layer: QuantLinear) -> LoraLinear:
        out, inputs = layer.codes.shape
        a, b = random.standard_normal((2, inputs)), random.standard_normal((out, 2))
        delta = Delta(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), None, None, 0.1, 0)
        return LoraLinear(layer, (delta,))

    adapted = map_linears(adapt, params)
    wanted = decode.score(adapted, IDS)
    assert distance(wanted, decode.score(params, IDS)) > 1e-2
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.\w+ is quantised, and nothing"):
        fuse(adapted)
    plain = lambda _, layer: LoraLinear(dequantize(layer.base), layer.deltas)
    assert distance(decode.score(fuse(map_linears(plain, adapted)), IDS), wanted) < 5e-6
    layer: Any = adapted.blocks[0].mlp.up
    x = jnp.ones((3, 64))
    grads = jax.grad(lambda deltas: LoraLinear(layer.base, deltas)(x).sum())(layer.deltas)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


# --- on a disk and a mesh ---------------------------------------------------------------------
MESHES = {"tensor 8": {}, "fsdp 2 tensor 4": {"fsdp": 2}, "data 4 tensor 2": {"data": 4}}


@pytest.mark.parametrize(
    ("name", "how", "mesh"),
    [(name, {}, mesh) for name in NETWORKS for mesh in MESHES]
    + [("v1", {"bits": bits, "group": None}, "fsdp 2 tensor 4") for bits in (4, 8)],
)
def test_checkpoints_on_meshes(name: str, how: dict[str, Any], mesh: str, tmp_path: Path) -> None:
    params, twin = network(name, **how)
    save(params, tmp_path / "one")
    placed = load(tmp_path / "one", make_mesh(**MESHES[mesh]))
    assert distance(decode.score(placed, IDS), decode.score(twin, IDS)) < 3e-6
    save(placed, tmp_path / "two")
    again = load(tmp_path / "two", make_mesh(devices=jax.devices()[:1]))
    for name, leaf in named_leaves(at_rest(again)).items():
        wanted = named_leaves(params)[name]
        assert leaf.dtype == wanted.dtype
        np.testing.assert_array_equal(leaf, wanted)


def test_codes_and_scales_are_cut_between_groups() -> None:
    places = lambda name: shardings(
        network(name)[0].config,
        make_mesh(fsdp=4, tensor=2),
        formats(network(name)[0]),
    )
    block: Any = places("v1").blocks[0]
    assert block.attn.qkv.codes.spec == block.attn.qkv.scales.spec == P("tensor", "fsdp")
    assert block.attn.qkv.zeros.spec == P("tensor", "fsdp")
    assert block.mlp.down.codes.spec == P("fsdp", "tensor")
    block = places("grouped").blocks[0]
    assert block.attn.out.codes.spec == P("fsdp", "tensor")
    assert block.mlp.down.codes.spec == P(("tensor", "fsdp"), None)  # 3 groups on 2 devices


def test_one_group_is_cut_anywhere() -> None:
    """What each device adds up has one scale, which waits for the whole sum."""
    params = network("v1", 8, True, None)[0]
    block: Any = shardings(params.config, make_mesh(fsdp=2), formats(params)).blocks[0]
    assert block.attn.out.codes.spec == block.mlp.down.codes.spec == P("fsdp", "tensor")
    assert block.attn.out.scales.spec == P("fsdp", None)
    odd = {name: quant.Format(4, 1, False, False) for name in formats(params)}
    config = Config.from_hf(BIG | {"intermediate_size": 2 * 12})  # 12 inputs: 3 a device
    block = shardings(config, make_mesh(fsdp=2), odd).blocks[0]
    assert block.mlp.down.codes.spec == P(("tensor", "fsdp"), None)  # two share a byte


def test_arranged_arrays_keep_their_devices(tmp_path: Path) -> None:
    params, _ = network("v1")
    placed = jax.device_put(params, shardings(params.config, make_mesh(fsdp=2), formats(params)))
    placed = arrange_all(placed, "tpu")
    qkv: Any = placed.blocks[0].attn.qkv
    assert qkv.codes.shape == (4, 192, 16)
    assert qkv.codes.sharding.shard_shape(qkv.codes.shape) == (2, 48, 16)
    assert qkv.scales.sharding.shard_shape(qkv.scales.shape) == (2, 48)


def test_load_keeps_what_is_quantised(tmp_path: Path) -> None:
    """A dtype is for the other parameters: scales keep every digit."""
    save(network("v1")[0], tmp_path / "one")
    params = load(tmp_path / "one", dtype="bfloat16")
    layer: Any = params.blocks[0].attn.qkv
    assert params.embed.dtype == layer.bias.dtype == jnp.bfloat16
    assert (layer.scales.dtype, layer.zeros.dtype) == (jnp.float16, jnp.int8)
    assert isinstance(layer, QuantLinear)


def test_a_manifest_of_other_groups(tmp_path: Path) -> None:
    save(network("v1")[0], tmp_path / "one")
    file = tmp_path / "one" / "manifest.json"
    content = json.loads(file.read_text())
    scales = content["leaves"]["blocks.0.mlp.down.scales"]
    assert scales == {"shape": [64, 4], "dtype": "float16"}
    scales["shape"] = [64, 3]
    file.write_text(json.dumps(native.sealed(content)))
    with pytest.raises(ValueError, match=r"blocks.0.mlp.down has 64 inputs.*3 groups"):
        load(tmp_path / "one")
    scales.update(shape=[64, 4], dtype="int8")
    file.write_text(json.dumps(native.sealed(content)))
    with pytest.raises(ValueError, match=r"scales has dtype int8, expected float32 or bfloat16"):
        load(tmp_path / "one")


# --- compiled ---------------------------------------------------------------------------------
def test_programs_know_quantised_weights() -> None:
    """Their compiler options keep a GPU from rebuilding the weights; others compile without."""
    params, twin = (flatten(x) for x in network("v1"))
    assert params.structure.quantised
    assert not twin.structure.quantised
    for function in (*vars(decode).values(), *vars(prompts).values()):
        if isinstance(function, Program):
            assert function.of(params) is function.quantised
            assert function.of(twin) is function.plain
        elif hasattr(function, "_cache_size"):
            assert "weights" not in inspect.signature(function).parameters, function


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowered_without_the_hardware(platform: str) -> None:
    for zeros, group in ((True, 16), (False, None)):
        formats = quant.plan(Config.from_hf(BIG), 4, group, zeros)
        params = aot.params(Config.from_hf(BIG), jnp.bfloat16, None, formats)
        params = arrange_all(params, platform)
        state = aot.state(params, slots=2, length=64)
        text = aot.step(params, state, 4).lower(lowering_platforms=(platform,)).as_text()
        assert "xi4>" in text  # two to a byte on these devices
