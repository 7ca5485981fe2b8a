"""Networks of the tests: Hugging Face tensors, golden or random, put together by the name table."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from qwen_jax.config import Config
from qwen_jax.decoding import decode, prompts
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.pieces import Piece
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import Output, State
from qwen_jax.nn.model import Qwen, build
from qwen_jax.nn.tree import named_leaves
from qwen_jax.storage.hf_names import tensor_views
from tests.reference import Tensors, read_checkpoint

GREEDY = Sampling(temperature=0)
V1: dict[str, Any] = {
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
QWEN2: dict[str, Any] = {
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


structure: Callable[[Any], Any] = jax.tree.structure  # its own type has no ==


@dataclass(frozen=True)
class Network:
    """A checkpoint as it is on disk, and as a model."""

    hf: dict[str, Any]
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


def assemble(hf: dict[str, Any], tensors: Tensors, dtype: Any = np.float32) -> Qwen:
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


def cache_sizes(*functions: Any) -> list[int]:
    """How many programs each jitted function has become."""
    jitted: list[Any] = [getattr(function, "plain", function) for function in functions]
    return [function._cache_size() for function in jitted]


def temporary_bytes(program: Any) -> int:
    """What a compiled program needs beside its inputs and outputs."""
    return int(program.memory_analysis().temp_size_in_bytes)


def settings(
    sampling: Sampling = GREEDY, seed: int = 0, eos: tuple[Any, ...] = ()
) -> SamplingArrays:
    return SamplingArrays.of(sampling, eos, seed)


def piece(
    slot: int,
    ids: list[int] | np.ndarray,
    start: int,
    end: int,
    sampling: SamplingArrays | None = None,
    new: int = 1,
    **how: Any,
) -> Piece:
    """A part of a prompt."""
    wanted = settings() if sampling is None else sampling
    part = [int(id) for id in ids[start:end]]
    return Piece(slot, part, start, len(ids), wanted, new, last=end >= len(ids), **how)


def prefill(
    params: Qwen,
    state: State,
    slot: int,
    ids: list[int] | np.ndarray,
    sampling: SamplingArrays | None = None,
    new: int = 1,
    chunk: int = prompts.CHUNK,
    start: int = 0,
    **how: Any,
) -> tuple[State, Output]:
    """A whole prompt from `start` on, chunk by chunk -> state and the Output of the last one."""
    for at in range(start, len(ids), chunk):
        part = piece(slot, ids, at, at + chunk, sampling, new, **how)
        state, output = prompts.prefill(params, state, [part])
        assert int(output.tokens[0, 0]) >= 0 if part.last else output.tokens == -1
        assert output.active.shape == (1,)
    return state, output


def finish(
    params: Qwen, state: State, first: dict[int, list[int]], count: int = 4
) -> tuple[State, dict[int, list[Any]]]:
    """Step until no slot is active -> state, {slot: tokens} with those of `first` in front."""
    tokens = {slot: list(ids) for slot, ids in first.items()}
    while bool(state.rows.active.any()):
        state, output = decode.step(params, state, count)
        np.testing.assert_array_equal(output.active, state.rows.active)
        for slot in tokens:
            tokens[slot] += [t for t in output.tokens[slot].tolist() if t >= 0]
    return state, tokens


def answer(
    params: Qwen,
    state: State,
    slot: int,
    ids: list[int] | np.ndarray,
    sampling: SamplingArrays | None = None,
    new: int = 8,
    chunk: int = prompts.CHUNK,
) -> tuple[State, list[int]]:
    """One request alone -> state, its new tokens."""
    state, output = prefill(params, state, slot, ids, sampling, new, chunk)
    state, tokens = finish(params, state, {slot: output.tokens[0].tolist()})
    return state, tokens[slot]
