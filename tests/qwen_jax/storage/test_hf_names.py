"""The table of names pairs every tensor with every leaf, number by number."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_jax.config import Config
from qwen_jax.nn.model import build
from qwen_jax.nn.tree import named_leaves
from qwen_jax.storage.hf_names import is_harmless, tensor_views
from tests.qwen_jax.networks import QWEN2, QWEN3, V1, assemble
from tests.reference import random_checkpoint, read_checkpoint

GOLDENS = ("v1/base", "modern/qwen2_gqa", "modern/qwen3")


def zeros(hf):
    return named_leaves(
        build(Config.from_hf(hf), lambda shape, axes, kind: np.zeros(shape, np.int64))
    )


def table(hf):
    return list(tensor_views(Config.from_hf(hf), hf["model_type"]))


@pytest.mark.parametrize("name", GOLDENS)
def test_tensors_of_real_checkpoints(golden, name):
    hf, tensors = read_checkpoint(golden(name))
    shapes = [(part.tensor, part.shape) for part in table(hf)]
    assert len(dict(shapes)) == len(shapes)
    assert dict(shapes) == {name: tensor.shape for name, tensor in tensors.items()}


@st.composite
def configs(draw):
    count = lambda most: draw(st.integers(1, most))
    layers, kv_heads, head_dim = count(3), count(3), 2 * count(4)
    sizes = {"vocab_size": count(20), "num_hidden_layers": layers}
    if draw(st.booleans()):
        width = {"hidden_size": kv_heads * head_dim, "kv_channels": head_dim}
        mlp = {"intermediate_size": 2 * count(9)}
        return V1 | sizes | width | mlp | {"num_attention_heads": kv_heads}
    sizes |= {"hidden_size": count(20), "head_dim": head_dim, "intermediate_size": count(9)}
    sizes |= {"num_attention_heads": kv_heads * count(4), "num_key_value_heads": kv_heads}
    return (
        draw(st.sampled_from([QWEN2, QWEN3])) | sizes | {"tie_word_embeddings": draw(st.booleans())}
    )


@settings(max_examples=60, deadline=None)
@given(configs())
def test_every_number_has_one_place(hf):
    """Tensors -> leaves writes every number of every leaf once, and leaves -> tensors undoes it."""
    leaves, writes, tensors = zeros(hf), zeros(hf), {}
    count = 0
    for part in table(hf):
        size = int(np.prod(part.shape))
        tensors[part.tensor] = np.arange(count, count + size).reshape(part.shape)
        count += size
        into, out_of = part.views(leaves[part.leaf], tensors[part.tensor])
        into[...] = out_of
        into, out_of = part.views(writes[part.leaf], np.ones(part.shape))
        into[...] += out_of.astype(np.int64)
    assert all((times == 1).all() for times in writes.values())
    for part in table(hf):
        back = np.full(part.shape, -1)
        out_of, into = part.views(leaves[part.leaf], back)
        into[...] = out_of
        np.testing.assert_array_equal(back, tensors[part.tensor])


@settings(max_examples=30, deadline=None)
@given(configs())
def test_random_checkpoints_fill_the_model(hf):
    tensors = random_checkpoint(hf, seed=0)
    assert {part.tensor: part.shape for part in table(hf)} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(assemble(hf, tensors)))


@pytest.mark.parametrize(
    ("tensor", "harmless"),
    [
        ("transformer.h.3.attn.masked_bias", True),
        ("transformer.h.3.attn.rotary_emb.inv_freq", True),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("transformer.h.3.attn.bias", True),  # GPT-2's causal mask
        ("transformer.h.3.attn.c_attn.bias", False),
        ("model.layers.0.self_attn.q_proj.bias", False),
        ("lm_head.weight", False),
        ("masked_bias", False),
    ],
)
def test_harmless_tensors(tensor, harmless):
    assert is_harmless(tensor) is harmless
