"""What a server does with prompts beside prefilling them: score every token.

state, scores = score_chunk(params, state, 0, chunk, following, start=0, prompt_length=900)
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.decoding.decode import compute, own_pages
from qwen_jax.decoding.flat_params import Program, Weights, flatten
from qwen_jax.decoding.logits import SamplingArrays, best
from qwen_jax.decoding.pieces import Packed, Piece, pack
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import State, constrain, gather_logits, replicated
from qwen_jax.nn.model import Qwen


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scores:
    """Log probabilities of the ids that follow each token of a chunk; T tokens."""

    logprobs: Array  # [T] float32
    top_tokens: Array  # [T MAX_LOGPROBS] int32, best first
    top_logprobs: Array  # [T MAX_LOGPROBS] float32


def score_chunk(
    params: Qwen | Weights,
    state: State,
    slot: int,
    tokens: Sequence[int],
    following: Sequence[int],
    *,
    start: int,
    prompt_length: int,
    tile: int,
    rows: int,
    adapter: int = 0,
    table: np.ndarray | None = None,
) -> tuple[State, Scores]:
    """Score `following` [T], the id after each of a chunk's tokens, given all up to that token.

    The chunks of a text come in order; their keys and values fill the slot, which stays idle.
    tile, rows: what the chunk is padded to, rows of so many tokens, the same for all chunks to
    compile few programs. table: see decode.prefill.
    """
    assert len(tokens) == len(following)
    weights, settings = flatten(params), SamplingArrays.of(Sampling(), (), 0)
    piece = Piece(slot, tokens, start, prompt_length, settings, 0, last=False, adapter=adapter)
    slots, vocab = len(state.rows.active), weights.structure.config.vocab
    packed = pack([piece], slots, vocab, tile, rows, 1)
    wanted = np.zeros(tile * rows, np.int32)
    wanted[: len(following)] = following
    return _score_chunk(weights, state, packed, wanted, own_pages(table, packed))


@functools.partial(Program, donate_argnums=1)
def _score_chunk(
    weights: Weights, state: State, packed: Packed, following: Array, table: Array | None
) -> tuple[State, Scores]:
    mesh = weights.structure.mesh
    x, cache = compute(weights, state, packed, table)
    logits = weights.model().logits(x.reshape(-1, x.shape[-1]))
    logprobs = jax.nn.log_softmax(gather_logits(logits, mesh), axis=-1)  # [T V]
    ids, values = best(logprobs, jnp.bool_(True))
    chosen = jnp.take_along_axis(logprobs, following[:, None], axis=1)[:, 0]
    active = state.rows.active.at[packed.slots].set(False, mode="drop")
    state = State(cache, replace(state.rows, active=active))
    return constrain(state, mesh), replicated(Scores(chosen, ids, values), mesh)
