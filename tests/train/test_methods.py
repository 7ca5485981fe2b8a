"""What each method trains, and what comes out."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import convert
import qwen_jax
from qwen_jax.adapters import peft
from qwen_jax.decoding.generation_config import Defaults
from qwen_jax.nn.quant import QuantLinear
from qwen_jax.nn.tree import named_leaves
from tests.assets import assets_of
from tests.conftest import Golden
from tests.train.networks import batch, random_samples, run
from train.methods import Prepared, export, prepare
from train.settings import TrainConfig
from train.step import Recipe, Trainer, TrainState

BATCH = batch(random_samples([20, 12, 30], 1000), [[0, 1], [2]], 32)
RECIPE = Recipe(steps=5, learning_rate=1e-2, remat="none")


def trained(method: Any, **more: Any) -> tuple[Prepared, Trainer, TrainState]:
    """A demo network, before and after five steps."""
    params = qwen_jax.load("demo")
    settings = TrainConfig("demo", ("chats.json",), "runs", method, rank=4, **more)
    prepared = prepare(params, settings)
    trainer = Trainer(prepared.params, prepared.trained, RECIPE, jnp.bfloat16)
    before = {name: np.array(leaf) for name, leaf in trainer.frozen.items()}
    state, metrics = run(trainer, [BATCH] * 5)
    assert float(metrics[-1].loss) < float(metrics[0].loss)
    for name, leaf in before.items():
        np.testing.assert_array_equal(trainer.frozen[name], leaf)
    return prepared, trainer, state


def test_adapters_are_all_that_learns_and_open_again(tmp_path: Path) -> None:
    prepared, trainer, state = trained("lora")
    assert all(".deltas." in name for name in prepared.trained)
    folder = export(trainer.params(state.trained), prepared.adapter, tmp_path)
    assert folder == tmp_path / "adapter"
    params = qwen_jax.load("demo", adapter=folder, dtype=jnp.float32)
    network = trainer.params(state.trained)
    for name, leaf in named_leaves(params).items():
        if ".deltas." in name:
            _, layer, *rest = name.split(".")
            stacked = named_leaves(network)[".".join(["blocks", *rest])]
            np.testing.assert_array_equal(leaf, stacked[int(layer)], err_msg=name)


def test_a_base_model_also_trains_its_embedding_and_head(tmp_path: Path) -> None:
    """As the original: its ChatML tokens have never been seen."""
    params = qwen_jax.load("demo")
    assets = assets_of(params)
    base = dataclasses.replace(
        params, assets=dataclasses.replace(assets, defaults=replace_format(assets.defaults, "raw"))
    )
    settings = TrainConfig("demo", ("chats.json",), "runs", "lora", rank=4)
    prepared = prepare(base, settings)
    assert {n for n in prepared.trained if ".deltas." not in n} == {"embed", "head.kernel"}
    folder = export(prepared.params, prepared.adapter, tmp_path)
    assert set(peft.read(folder).saved) == {"transformer.wte.weight", "lm_head.weight"}
    chat = prepare(qwen_jax.load("demo"), settings)
    assert all(".deltas." in name for name in chat.trained)


def replace_format(defaults: Defaults, chat_format: str) -> Defaults:
    return dataclasses.replace(defaults, chat_format=chat_format)


def test_adapters_over_quantised_weights(tmp_path: Path) -> None:
    prepared, trainer, state = trained("qlora", group_size=32)
    blocks: Any = prepared.params.blocks  # stacked
    layers = [blocks.attn.qkv, blocks.mlp.down]
    assert all(isinstance(layer.base, QuantLinear) and layer.base.bits == 4 for layer in layers)
    assert all(".deltas." in name for name in prepared.trained)
    assert sum(name.endswith("codes") for name in trainer.frozen) == 5
    export(trainer.params(state.trained), prepared.adapter, tmp_path)
    qwen_jax.load("demo", adapter=tmp_path / "adapter")


def test_adapters_over_a_gptq_checkpoint(golden: Golden, tmp_path: Path) -> None:
    """Its integers stay what they were, to the last bit."""
    folder = convert.to_native(golden("quant/gptq4"), tmp_path / "native")
    settings = TrainConfig(str(folder), ("chats.json",), "runs", "qlora", rank=4)
    prepared = prepare(qwen_jax.load(folder, dtype=jnp.float32), settings)
    trainer = Trainer(prepared.params, prepared.trained, RECIPE, jnp.float32)
    before = {name: np.array(leaf) for name, leaf in trainer.frozen.items()}
    rows = batch(random_samples([20, 12], 500), [[0, 1]], 32)
    state, metrics = run(trainer, [rows] * 5)
    assert float(metrics[-1].loss) < float(metrics[0].loss)
    assert state.trained.keys() == {name for name in trainer.names if ".deltas." in name}
    assert {leaf.dtype for n, leaf in before.items() if n.endswith("codes")} <= {jnp.dtype("uint8")}
    for name, leaf in before.items():
        np.testing.assert_array_equal(trainer.frozen[name], leaf, err_msg=name)
    made = export(trainer.params(state.trained), prepared.adapter, tmp_path / "run")
    qwen_jax.load(folder, adapter=made)
    assert peft.read(made).settings.base == str(golden("quant/gptq4"))  # where PEFT finds it


def test_everything_is_trained_and_loads_again(tmp_path: Path) -> None:
    prepared, trainer, state = trained("full")
    assert not trainer.frozen
    assert all(leaf.dtype == jnp.float32 for leaf in state.trained.values())
    folder = export(trainer.params(state.trained), prepared.adapter, tmp_path)
    params, demo = qwen_jax.load(folder), qwen_jax.load("demo")
    assert params.config == demo.config
    for name, leaf in named_leaves(demo).items():
        assert not np.array_equal(named_leaves(params)[name], leaf), name


def test_a_second_round_starts_from_the_first_adapter(tmp_path: Path) -> None:
    prepared, trainer, state = trained("lora")
    folder = export(trainer.params(state.trained), prepared.adapter, tmp_path)
    settings = TrainConfig("demo", ("chats.json",), "runs", "lora", adapter=str(folder))
    again = prepare(qwen_jax.load("demo"), settings)
    leaves = named_leaves(again.params)
    for name in again.trained:
        np.testing.assert_array_equal(leaves[name], state.trained[name], err_msg=name)


def test_targets_that_are_not_there_are_named() -> None:
    settings = TrainConfig("demo", ("chats.json",), "runs", "lora", targets=("q_proj",))
    with pytest.raises(ValueError, match=r"q_proj.*c_attn"):
        prepare(qwen_jax.load("demo"), settings)
