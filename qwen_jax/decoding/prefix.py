"""What a server does with prompts beside prefilling them: reuse a prefix, score every token.

state = copy_prefix(params, state, source=3, slot=0, tokens=prefix)  # slot 0 goes on there
state, scores = score_chunk(params, state, 0, chunk, following, start=0, prompt_length=900)
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.decoding.decode import bucket
from qwen_jax.decoding.flat_params import Program, Structure, Weights, flatten
from qwen_jax.decoding.logits import History, best
from qwen_jax.decoding.state import State, constrain, gather_logits, replicated
from qwen_jax.nn.kv_cache import Store
from qwen_jax.nn.lora import select_adapters
from qwen_jax.nn.model import Qwen


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scores:
    """Log probabilities of the ids that follow each token of a chunk; T tokens."""

    logprobs: Array  # [T] float32
    top_tokens: Array  # [T MAX_LOGPROBS] int32, best first
    top_logprobs: Array  # [T MAX_LOGPROBS] float32


def copy_prefix(
    params: Qwen | Weights, state: State, source: int, slot: int, tokens: Sequence[int]
) -> State:
    """Give a slot the beginning of what another holds, as if it had been prefilled there.

    tokens: the ids of that beginning; prefill goes on at start = len(tokens). source may be the
    slot itself. What the slot did before ends.
    """
    size = min(bucket(len(tokens)), state.cache.length)
    padded = np.zeros(size, np.int32)
    padded[: len(tokens)] = tokens
    structure = flatten(params).structure
    return _copy_prefix(
        structure, state, np.int32(source), np.int32(slot), padded, np.int32(len(tokens))
    )


def score_chunk(
    params: Qwen | Weights,
    state: State,
    slot: int,
    tokens: Sequence[int],
    following: Sequence[int],
    *,
    start: int,
    prompt_length: int,
    size: int,
    adapter: int = 0,
) -> tuple[State, Scores]:
    """Score `following` [T], the id after each of a chunk's tokens, given all up to that token.

    The chunks of a text come in order; their keys and values fill the slot, which stays idle.
    size: what the chunk is padded to, the same for all chunks to compile few programs.
    """
    assert len(tokens) == len(following) <= size
    assert start + size <= state.cache.length
    padded = np.zeros((2, size), np.int32)
    padded[:, : len(tokens)] = tokens, following
    window = min(state.cache.length, bucket(start + size))
    return _score_chunk(
        flatten(params),
        state,
        np.int32(slot),
        padded,
        np.int32(start),
        np.int32(prompt_length),
        np.int32(adapter),
        window=window,
    )


@functools.partial(jax.jit, donate_argnums=1, static_argnums=0)
def _copy_prefix(
    structure: Structure, state: State, source: Array, slot: Array, tokens: Array, length: Array
) -> State:
    def copy(store: Store) -> Store:
        def move(x: Array) -> Array:
            shape = (1, x.shape[1], tokens.shape[0], *x.shape[3:])
            zeros = [0] * (x.ndim - 1)
            part = jax.lax.dynamic_slice(x, [source, *zeros], shape)
            return jax.lax.dynamic_update_slice(x, part, [slot, *zeros])

        return jax.tree.map(move, store)

    cache = replace(
        state.cache,
        keys=tuple(map(copy, state.cache.keys)),
        values=tuple(map(copy, state.cache.values)),
    )
    row = replace(
        state.read_slot(slot),
        cache=cache,
        positions=length[None],
        active=jnp.zeros(1, bool),
        history=History.empty(1, structure.config.vocab).prompt(tokens, length),
    )
    return constrain(state.write_slot(slot, row), structure.mesh)


@functools.partial(Program, donate_argnums=1, static_argnames="window")
def _score_chunk(
    weights: Weights,
    state: State,
    slot: Array,
    tokens: Array,  # [2 T]: the chunk, and what follows each of its tokens
    start: Array,
    prompt_length: Array,
    adapter: Array,
    *,
    window: int,
) -> tuple[State, Scores]:
    model, mesh = select_adapters(weights.model(), adapter[None]), weights.structure.mesh
    offsets = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    cache = state.cache.select(slot, window)
    x, cache = model(tokens[:1], (start + offsets)[None], prompt_length[None], cache)
    logprobs = jax.nn.log_softmax(gather_logits(model.logits(x[0]), mesh), axis=-1)  # [T V]
    ids, values = best(logprobs, jnp.bool_(True))
    chosen = jnp.take_along_axis(logprobs, tokens[1][:, None], axis=1)[:, 0]
    row = replace(
        state.read_slot(slot),
        cache=cache.select(None, None),
        positions=(start + tokens.shape[1])[None],
        active=jnp.zeros(1, bool),
    )
    return constrain(state.write_slot(slot, row), mesh), replicated(
        Scores(chosen, ids, values), mesh
    )
