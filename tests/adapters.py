"""Random adapters, and what they do to a checkpoint, in NumPy and by Hugging Face's names."""

import dataclasses
import re
from typing import Any

import numpy as np

from qwen_jax.adapters.peft import Adapter
from qwen_jax.adapters.peft_config import LoraConfig
from tests.reference import Tensors

MODERN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
V1 = ("c_attn", "c_proj", "w1", "w2")


def random_adapter(tensors: Tensors, settings: LoraConfig, seed: int = 0) -> Adapter:
    """Adapts every layer of a checkpoint that the settings choose; float32."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: np.asarray(random.normal(0, 0.3, shape), np.float32)
    deltas, saved = {}, {}
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        if settings.saves(module):
            saved[name] = draw(*tensor.shape)
        elif re.search(r"\.\d+\.", name) and tensor.ndim == 2 and settings.adapted([module]):
            rank = settings.ranks([module])[module]
            deltas[module] = draw(rank, tensor.shape[1]), draw(tensor.shape[0], rank)
    return Adapter(settings, deltas, saved)


def merged(tensors: Tensors, adapter: Adapter) -> Tensors:
    """The checkpoint with the adapter in its weights, float64."""
    made = {
        name: tensor.astype(np.float64) for name, tensor in {**tensors, **adapter.saved}.items()
    }
    for module, (a, b) in adapter.deltas.items():
        product = b.astype(np.float64) @ a.astype(np.float64)
        made[module + ".weight"] += adapter.settings.scales([module])[module] * product
    return made


def assert_same(got: Adapter, wanted: Adapter) -> None:
    """Bit for bit; the order of names in settings means nothing."""
    assert plain(got.settings) == plain(wanted.settings)
    assert got.deltas.keys() == wanted.deltas.keys()
    assert got.saved.keys() == wanted.saved.keys()
    pairs = [(got.saved[name], wanted.saved[name]) for name in wanted.saved]
    for module, matrices in wanted.deltas.items():
        pairs += zip(got.deltas[module], matrices, strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def plain(settings: LoraConfig) -> LoraConfig:
    order: Any = lambda names: names if isinstance(names, str) else tuple(sorted(names))
    saved = order(settings.modules_to_save)
    return dataclasses.replace(settings, targets=order(settings.targets), modules_to_save=saved)
