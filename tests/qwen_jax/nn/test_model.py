"""The network against the original implementations, and against float64 for random ones."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_jax.decoding.decode import score
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.nn.model import Linear, RMSNorm
from tests.conftest import Golden
from tests.qwen_jax.networks import QWEN2, QWEN3, V1, assemble, distance, golden_network
from tests.reference import random_checkpoint, reference_logits

TOLERANCE = 2e-5  # of the largest logit, in float32
GOLDENS = [f"v1/{name}" for name in ("base", "ntk_only", "logn_only")]
GOLDENS += [f"modern/{name}" for name in ("qwen2_gqa", "qwen25_yarn", "qwen3")]


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens(golden: Golden, name: str) -> None:
    network = golden_network(golden(name))
    wanted = network.outputs["logits"]
    assert distance(score(network.params, network.outputs["input_ids"]), wanted) < TOLERANCE


@pytest.mark.parametrize("length", [16, 32, 33, 48, 64, 65, 120, 200])
def test_long_context(golden: Golden, length: int) -> None:
    network = golden_network(golden("v1/longctx"))
    logits = score(network.params, network.outputs[f"input_ids_{length}"])
    assert distance(logits, network.outputs[f"logits_{length}"]) < TOLERANCE


def test_bfloat16(golden: Golden) -> None:
    """As close to float32 arithmetic on the same weights as the original's bfloat16 is (9e-3)."""
    network = golden_network(golden("v1/bf16"))
    logits = score(network.params, network.outputs["input_ids"])
    assert {leaf.dtype for leaf in flatten(network.params).leaves} == {jnp.dtype(jnp.bfloat16)}
    wanted = network.outputs["logits_f32"]
    assert distance(logits, wanted) < 1.5 * distance(network.outputs["logits_bf16"], wanted)


def test_float16(golden: Golden) -> None:
    network = golden_network(golden("v1/base"))
    params = assemble(network.hf, network.tensors, np.float16)
    logits = score(params, network.outputs["input_ids"])
    assert logits.dtype == jnp.float32
    assert distance(logits, network.outputs["logits"]) < 3e-3


# --- random networks --------------------------------------------------------------------------
@st.composite
def first(draw: st.DrawFn) -> dict[str, Any]:
    heads, head_dim = draw(st.integers(1, 5)), draw(st.sampled_from([4, 6, 8, 16]))
    return V1 | {
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "kv_channels": head_dim,
        "intermediate_size": 2 * draw(st.integers(1, 40)),
        "seq_length": draw(st.integers(2, 30)),
        "rotary_emb_base": draw(st.sampled_from([100, 10000, 1000000])),
        "use_dynamic_ntk": draw(st.booleans()),
        "use_logn_attn": draw(st.booleans()),
        **_any_network(draw),
    }


@st.composite
def later(draw: st.DrawFn, kind: dict[str, Any]) -> dict[str, Any]:
    kv_heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([4, 6, 8, 16]))
    heads = kv_heads * draw(st.integers(1, 3))
    width = heads * head_dim if kind is QWEN2 else draw(st.integers(1, 40))
    yarn = {
        "type": "yarn",
        "factor": draw(st.floats(1.5, 8)),
        "original_max_position_embeddings": 8,
    }
    return kind | {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": draw(st.integers(1, 40)),
        "rope_theta": draw(st.sampled_from([100.0, 10000.0, 1000000.0])),
        "rope_scaling": draw(st.sampled_from([None, yarn])),
        "tie_word_embeddings": draw(st.booleans()),
        **_any_network(draw),
    }


def _any_network(draw: Callable[..., Any]) -> dict[str, int]:
    return {"vocab_size": draw(st.integers(2, 70)), "num_hidden_layers": draw(st.integers(1, 2))}


@settings(max_examples=6, deadline=None)
@given(first() | later(QWEN2) | later(QWEN3), st.integers(0, 99), st.integers(1, 40))
def test_random_networks(hf: dict[str, Any], seed: int, length: int) -> None:
    check_random_network(hf, seed, length)


# one of each family, whatever hypothesis draws
@pytest.mark.parametrize("hf", [V1, QWEN2, QWEN3], ids=lambda hf: hf["model_type"])
def test_families(hf: dict[str, Any]) -> None:
    check_random_network(hf, seed=0, length=30)


def check_random_network(hf: dict[str, Any], seed: int, length: int) -> None:
    tensors = random_checkpoint(hf, seed)
    ids = np.random.default_rng(seed).integers(0, hf["vocab_size"], length)
    logits = score(assemble(hf, tensors), ids[None])
    assert distance(logits[0], reference_logits(hf, tensors, ids.tolist())) < TOLERANCE


# --- what score promises ----------------------------------------------------------------------
def test_padding_changes_nothing(golden: Golden) -> None:
    """31 to 33 tokens are padded to 32 and 64: the same text, and the same first tokens of it."""
    network = golden_network(golden("v1/base"))
    ids = np.arange(33)[None] * 7 % 512
    short, long = score(network.params, ids[:, :31]), score(network.params, ids)
    assert (short.shape, long.shape) == ((1, 31, 512), (1, 33, 512))
    assert distance(long[:, :31], short) < 2e-6


def test_rows_are_independent(golden: Golden) -> None:
    network = golden_network(golden("v1/longctx"))
    ids = network.outputs["input_ids_48"]
    together = score(network.params, np.concatenate([ids[:, ::-1], ids]))
    assert distance(together[1:], score(network.params, ids)) < 2e-6


# --- layers -----------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_linear(rows: int, dtype: Any) -> None:
    """Accumulated in float32 whatever the type, with and without bias, few rows or many."""
    random = np.random.default_rng(0)
    x, kernel, bias = (
        jnp.asarray(random.normal(size=s), dtype) for s in ((rows, 64), (5, 64), (5,))
    )
    exact = lambda a: np.asarray(a, np.float64)
    product = exact(x) @ exact(kernel).T
    rounding = 1e-6 if dtype == jnp.float32 else 2**-8
    for layer, wanted in (
        (Linear(kernel, None), product),
        (Linear(kernel, bias), product + exact(bias)),
    ):
        y = layer(x)
        assert y.dtype == dtype
        assert distance(y, wanted) < 2 * rounding


def test_norm_rounds_before_it_scales() -> None:
    """The original's order: to x's type, then times the weight in that type."""
    x, scale = (
        jnp.asarray(np.random.default_rng(s).normal(size=(4, 32)), jnp.bfloat16) for s in (0, 1)
    )
    y = np.asarray(x, np.float32)
    y = (y / np.sqrt((y * y).mean(-1, keepdims=True) + np.float32(1e-2))).astype(x.dtype)
    got = RMSNorm(scale, 1e-2)(x)
    assert got.dtype == jnp.bfloat16
    assert distance(got, np.asarray(y) * np.asarray(scale)) < 1e-2
    assert np.mean(np.asarray(got) == np.asarray(y) * np.asarray(scale)) > 0.99
