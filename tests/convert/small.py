"""Small networks of every kind, and what must be true of them after a conversion."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qwen_jax.config import Config
from qwen_jax.nn.model import Qwen, build
from qwen_jax.nn.tree import named_leaves
from qwen_jax.storage.hf_names import tensor_views
from tests.reference import read_checkpoint

V1 = {
    "model_type": "qwen",
    "vocab_size": 96,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "kv_channels": 8,
    "intermediate_size": 40,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "seq_length": 64,
}
QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 96,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
QWEN3 = QWEN2 | {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True}
MADE_FOR_TESTS = "golden.safetensors"


def random_params(config: dict[str, Any], dtype: Any = np.float32) -> Qwen:
    """Parameters that never were a checkpoint."""
    random = np.random.default_rng(0)
    leaf = lambda shape, axes, kind: jnp.asarray(random.normal(size=shape), dtype)
    return build(Config.from_hf(config), leaf)


def assert_holds(params: Qwen, folder: Path, dtype: Any = None) -> None:
    """Every tensor of a Hugging Face folder is in the parameters, and nothing else is."""
    config, tensors = read_checkpoint(folder)
    leaves = {name: np.array(leaf) for name, leaf in named_leaves(params).items()}
    for part in tensor_views(Config.from_hf(config), config["model_type"]):
        leaf, tensor = part.views(leaves[part.leaf], tensors.pop(part.tensor))
        assert leaf.dtype == (dtype or tensor.dtype)
        np.testing.assert_array_equal(leaf, tensor.astype(leaf.dtype))
        leaf[...] = np.nan
    assert not tensors
    for name, leaf in leaves.items():
        assert np.isnan(leaf).all(), f"{name} has numbers of no tensor"


def assert_same_params(params: Qwen, others: Qwen) -> None:
    wanted = named_leaves(others)
    assert params.config == others.config
    assert named_leaves(params).keys() == wanted.keys()
    for name, leaf in named_leaves(params).items():
        assert leaf.dtype == wanted[name].dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted[name]))


def assert_same_files(made: Path, source: Path) -> None:
    files = {file.name: file.read_bytes() for file in source.iterdir()}
    files.pop(MADE_FOR_TESTS, None)
    assert {file.name: file.read_bytes() for file in made.iterdir()} == files
