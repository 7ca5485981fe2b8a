"""Adapters find their layers in any network, on any devices, and come back as they were."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import convert
import qwen_jax
from qwen_jax import Sampling
from qwen_jax.adapters import attach, peft
from qwen_jax.adapters.peft import Adapter
from qwen_jax.adapters.peft_config import LoraConfig
from qwen_jax.command.answering import answer
from qwen_jax.command.settings import GenerateConfig
from qwen_jax.decoding import decode
from qwen_jax.nn.lora import LoraLinear, fuse
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh, mesh_of, shardings
from qwen_jax.nn.tree import named_leaves
from tests.adapters import MODERN, assert_same, merged, random_adapter
from tests.adapters import V1 as V1_NAMES
from tests.conftest import Golden
from tests.qwen_jax.networks import QWEN2, QWEN3, V1, assemble, distance
from tests.reference import random_checkpoint, reference_logits

BIG = {"hidden_size": 64, "num_attention_heads": 8, "vocab_size": 128}
NETWORKS = {  # of one layer, but for the one whose ranks differ between layers
    "v1": V1 | BIG | {"kv_channels": 8, "intermediate_size": 128},
    "qwen2": QWEN2 | BIG | {"tie_word_embeddings": False, "intermediate_size": 64},
    "tied": QWEN2 | BIG | {"intermediate_size": 64},
    "qwen3": QWEN3 | BIG | {"num_hidden_layers": 2, "head_dim": 12, "intermediate_size": 64},
}
SETTINGS = {
    "v1": LoraConfig(4, 8.0, V1_NAMES, 0.05),
    "qwen2": LoraConfig(4, 8.0, ("q_proj", "v_proj", "down_proj"), modules_to_save=("lm_head",)),
    "tied": LoraConfig(4, 8.0, "all-linear", rslora=True),
    "qwen3": LoraConfig(
        4,
        6.0,
        MODERN,
        rank_pattern={"k_proj": 2, r"layers\.1\..*q_proj": 3},
        alpha_pattern={"up_proj": 9.0},
        modules_to_save=("embed_tokens", "lm_head", "norm"),
    ),
}
IDS = [5, 17, 90, 3, 3, 64, 8]


def case(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], Qwen, Adapter]:
    """A network's config, its tensors, its model and an adapter for it."""
    hf = NETWORKS[name]
    tensors = random_checkpoint(hf, seed=2)
    return hf, tensors, assemble(hf, tensors), random_adapter(tensors, SETTINGS[name])


def score(params: Qwen, ids: list[int] = IDS) -> Array:
    return decode.score(params, np.array([ids]))[0]


# --- arithmetic -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETWORKS)
def test_logits(name: str) -> None:
    """As the reference with W + scale * B A, whatever our layers fuse."""
    hf, tensors, params, adapter = case(name)
    wanted = reference_logits(hf, merged(tensors, adapter), IDS)
    made = attach.add(params, adapter)
    assert distance(score(made), wanted) < 2e-5
    assert distance(score(fuse(made)), wanted) < 2e-5
    assert distance(score(params), wanted) > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    _, _, params, adapter = case(name)
    peft.write(adapter, tmp_path / "adapter")
    read = peft.read(tmp_path / "adapter")
    assert_same(read, adapter)
    assert_same(attach.extract(attach.add(params, read), read.settings), adapter)


def test_one_fused_layer_has_an_adapter_for_each_part() -> None:
    _, _, params, adapter = case("qwen3")
    layer = attach.add(params, adapter).blocks[0].attn.qkv
    assert isinstance(layer, LoraLinear)
    assert [(d.rows.start, d.rows.stop) for d in layer.deltas] == [(0, 48), (48, 60), (60, 72)]
    assert layer.base.kernel is params.blocks[0].attn.qkv.kernel


@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_dtype(dtype: Any) -> None:
    """Adapters take the parameters' type, or the one that is asked for."""
    hf, tensors, params, adapter = case("qwen2")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    made = attach.add(params, adapter, dtype=dtype)
    new = [x for name, x in named_leaves(made).items() if "deltas" in name or "head" in name]
    assert {x.dtype for x in new} == {jnp.dtype(dtype or jnp.bfloat16)}
    wanted = reference_logits(hf, merged(tensors, adapter), IDS)
    assert distance(score(made), wanted) < 0.1
    assert fuse(made).blocks[0].attn.qkv.kernel.dtype == jnp.bfloat16


def test_generates() -> None:
    """Prefill and steps go through adapters as through any layer."""
    _, _, params, adapter = case("qwen2")
    made = attach.add(params, adapter)
    how: dict[str, Any] = {"sampling": Sampling(temperature=0), "max_new_tokens": 8}
    wanted = qwen_jax.generate(fuse(made), IDS, **how)
    assert qwen_jax.generate(made, IDS, **how) == wanted


# --- devices ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("v1", {}), ("v1", {"data": 2, "fsdp": 4}), ("qwen3", {"fsdp": 2, "tensor": 4})],
)
def test_sharded(name: str, sizes: dict[str, Any]) -> None:
    _, _, params, adapter = case(name)
    placed = jax.device_put(params, shardings(params.config, make_mesh(**sizes)))
    made = attach.add(placed, adapter)
    assert mesh_of(made) == mesh_of(placed)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(made))
    wanted = score(attach.add(params, adapter))
    assert distance(score(made), wanted) < 5e-6
    assert distance(score(fuse(made)), wanted) < 5e-6
    assert_same(attach.extract(made, adapter.settings), adapter)
    for name, leaf in named_leaves(fuse(made)).items():
        assert leaf.sharding.is_equivalent_to(named_leaves(placed)[name].sharding, leaf.ndim), name


def test_matrices_lie_along_their_layer() -> None:
    _, _, params, adapter = case("v1")
    mesh = make_mesh(fsdp=2)  # tensor 4
    made: Any = attach.add(jax.device_put(params, shardings(params.config, mesh)), adapter)
    (delta,) = made.blocks[0].mlp.down.deltas  # [64, 64 over tensor]
    shard = lambda x: x.sharding.shard_shape(x.shape)
    assert (shard(delta.a), shard(delta.b)) == ((4, 16), (32, 4))
    (delta,) = made.blocks[0].attn.qkv.deltas
    assert (shard(delta.a), shard(delta.b)) == ((4, 32), (48, 4))


def test_one_device_among_several() -> None:
    _, _, params, adapter = case("v1")
    device = jax.devices()[3]
    made: Any = attach.add(jax.device_put(params, device), adapter)
    assert {x.devices().pop() for x in jax.tree.leaves(made)} == {device}


# --- loading and saving -----------------------------------------------------------------------
def test_load(golden: Golden, tmp_path: Path) -> None:
    folder = convert.to_native(golden("peft/base"), tmp_path / "native")
    params: Any = qwen_jax.load(folder, adapter=golden("peft/lora_emb"), dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(params))
    (delta,) = params.blocks[1].mlp.up.deltas
    assert (delta.scale, delta.keys) == (2.0, None)
    with pytest.raises(ValueError, match=r"only whole networks are saved \(fuse adapters first\)"):
        qwen_jax.save(params, tmp_path / "other")
    qwen_jax.save(fuse(params), tmp_path / "other")
    wanted, got = fuse(params), qwen_jax.load(tmp_path / "other")
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(got), jax.tree.leaves(wanted))


def test_faults_are_found_before_arrays_are_read(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert.to_native("demo", tmp_path / "native")
    monkeypatch.setattr("qwen_jax.storage.native.read_piece", None)
    with pytest.raises(ValueError, match="does not fit this network"):
        qwen_jax.load(folder, adapter=golden("peft/lora"))
    with pytest.raises(ValueError, match="does not fit this network"):
        answer(GenerateConfig(folder=str(folder), prompt="hi", adapter=str(golden("peft/lora"))))


# --- what does not fit ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mine", "other", "message"),
    [
        ("v1", "qwen3", "h.0.attn.c_attn is no linear layer"),
        ("qwen3", "qwen2", r"q_proj is \[96, 64\], the layer is \[64, 64\]"),
        ("qwen2", "tied", "embed_tokens.weight and lm_head.weight are one array here"),
    ],
)
def test_another_network(mine: str, other: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)does not fit this network, .*{message}"):
        attach.add(case(other)[2], case(mine)[3])


def test_all_misfits_are_named() -> None:
    pair = np.ones((4, 64), np.float32), np.ones((64, 4), np.float32)
    wrong = {"lm_head": pair, "model.layers.9.mlp.up_proj": pair, "model.norm": pair}
    adapter = peft.Adapter(LoraConfig(4, 8.0, (), base="Qwen/Other"), wrong, {})
    with pytest.raises(ValueError) as error:
        attach.add(case("qwen2")[2], adapter)
    message = str(error.value)
    assert message.startswith("the adapter (made for Qwen/Other) does not fit this network, ")
    assert message.count("\n") == 3
    assert all(f"{name} is no linear layer of its blocks" in message for name in wrong)


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        (
            "lm_head.weight",
            (130, 64),
            r"lm_head.weight is \[130, 64\], the network's is \[128, 64\]",
        ),
        ("model.other.weight", (2,), "model.other.weight is no tensor of it"),
        ("model.layers.0.self_attn.q_proj.weight", (64, 64), "q_proj.weight is whole, which only"),
    ],
)
def test_whole_tensors_that_do_not_fit(tensor: str, shape: tuple[Any, ...], message: str) -> None:
    adapter = peft.Adapter(LoraConfig(1, 1.0, ()), {}, {tensor: np.ones(shape, np.float32)})
    with pytest.raises(ValueError, match=message):
        attach.add(case("qwen2")[2], adapter)


def test_tied_embedding() -> None:
    """Both names must be there and agree; then both are written again."""
    params = case("tied")[2]
    embed, settings = np.ones((128, 64), np.float32), LoraConfig(1, 1.0, (), modules_to_save=("x",))
    names = "model.embed_tokens.weight", "lm_head.weight"
    for saved in ({names[0]: embed}, {names[1]: embed}, {names[0]: embed, names[1]: -embed}):
        with pytest.raises(ValueError, match="are one array here, the adapter makes them differ"):
            attach.add(params, peft.Adapter(settings, {}, saved))
    made = attach.add(params, peft.Adapter(settings, {}, dict.fromkeys(names, embed)))
    np.testing.assert_array_equal(made.embed, embed)
    settings = LoraConfig(1, 1.0, "all-linear", modules_to_save=("lm_head",))
    chosen = attach.fresh(params, settings, jax.random.key(0)).settings
    assert attach.extract(made, chosen).saved.keys() == set(names)


def test_second_adapter() -> None:
    _, _, params, adapter = case("v1")
    with pytest.raises(ValueError, match=r"blocks.0.attn.* has an adapter already; fuse"):
        attach.add(attach.add(params, adapter), adapter)
