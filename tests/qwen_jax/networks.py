"""Networks of the tests: Hugging Face tensors, golden or random, put together by the name table."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from qwen_jax.config import Config
from qwen_jax.decoding import decode
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.nn.model import Qwen, build
from qwen_jax.nn.tree import named_leaves
from qwen_jax.storage.hf_names import tensor_views
from tests.reference import Tensors, read_checkpoint

GREEDY = Sampling(temperature=0)
V1 = {
    "model_type": "qwen",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "intermediate_size": 96,
    "seq_length": 8,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
}
QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
QWEN3 = QWEN2 | {"model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": False}


@dataclass(frozen=True)
class Network:
    """A checkpoint as it is on disk, and as a model."""

    hf: dict
    tensors: Tensors
    params: Qwen
    outputs: Tensors  # golden.safetensors


@functools.cache
def golden_network(folder: Path) -> Network:
    hf, tensors = read_checkpoint(folder)
    dtype = next(iter(tensors.values())).dtype
    return Network(
        hf, tensors, assemble(hf, tensors, dtype), load_file(folder / "golden.safetensors")
    )


def assemble(hf: dict, tensors: Tensors, dtype: Any = np.float32) -> Qwen:
    """The model whose tensors these are."""
    config = Config.from_hf(hf)
    tree = build(config, lambda shape, axes, kind: np.full(shape, np.nan, dtype))
    leaves = named_leaves(tree)
    for part in tensor_views(config, hf["model_type"]):
        leaf, tensor = part.views(leaves[part.leaf], tensors[part.tensor])
        leaf[...] = tensor
    return jax.tree.map(jnp.asarray, tree)


def distance(got: Any, wanted: Any) -> float:
    """Largest difference as a fraction of the largest wanted number, over the columns there are."""
    wanted = np.asarray(wanted, np.float64)
    return np.abs(np.asarray(got)[..., : wanted.shape[-1]] - wanted).max() / np.abs(wanted).max()


def settings(sampling: Sampling = GREEDY, seed: int = 0, eos: tuple = ()) -> SamplingArrays:
    return SamplingArrays.of(sampling, eos, seed)


def prefill(params, state, slot, ids, sampling=None, new=1, chunk=decode.CHUNK):
    """A whole prompt, chunk by chunk -> state and the Output of the last one."""
    ids = list(map(int, ids))
    for at in range(0, len(ids), chunk):
        state, output = decode.prefill(
            params,
            state,
            slot,
            ids[at : at + chunk],
            start=at,
            prompt_length=len(ids),
            settings=settings() if sampling is None else sampling,
            max_new_tokens=new,
        )
        assert int(output.tokens[0, 0]) >= 0 if at + chunk >= len(ids) else output.tokens == -1
        assert output.active.shape == (1,)
    return state, output


def finish(params, state, first, count=4):
    """Step until no slot is active -> state, {slot: tokens} with those of `first` in front."""
    tokens = {slot: list(ids) for slot, ids in first.items()}
    while bool(state.active.any()):
        state, output = decode.step(params, state, count)
        np.testing.assert_array_equal(output.active, state.active)
        for slot in tokens:
            tokens[slot] += [t for t in output.tokens[slot].tolist() if t >= 0]
    return state, tokens


def answer(params, state, slot, ids, sampling=None, new=8, chunk=decode.CHUNK):
    """One request alone -> state, its new tokens."""
    state, output = prefill(params, state, slot, ids, sampling, new, chunk)
    state, tokens = finish(params, state, {slot: output.tokens[0].tolist()})
    return state, tokens[slot]
