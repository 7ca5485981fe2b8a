"""What is done with prompts: prefill them, recall what pages hold of them, pool and score them.

state, first = prefill(params, state, pieces)      # of several prompts, or of a long one
state = recall(params, state, slot, tokens, 0, 90)  # pages that the slot was given hold them
state, vectors = pool(params, state, pieces)       # of each, what its last token amounts to
state, scores = score_chunk(params, state, 0, chunk, following, start=0, prompt_length=900)
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.decoding.choice import sample_next
from qwen_jax.decoding.decode import bucket, power
from qwen_jax.decoding.flat_params import Structure, Weights, flatten
from qwen_jax.decoding.logits import History, SamplingArrays, best, logprobs_of
from qwen_jax.decoding.pieces import Packed, Piece, newest, pack, piece_program, rows_of
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import (
    Output,
    Rows,
    State,
    Texts,
    constrain,
    gather_logits,
    replicated,
)
from qwen_jax.nn.model import Qwen

CHUNK = 2048  # most tokens one call takes
_LARGEST = 512  # tokens of a row: the rows of one text read its keys once each
_LARGEST_OF_CPU, _STEP_OF_CPU = 32, 8  # nothing there asks for a power of two


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scores:
    """Log probabilities of the ids that follow each token of a chunk; T tokens."""

    logprobs: Array  # [T] float32
    top_tokens: Array  # [T MAX_LOGPROBS] int32, best first
    top_logprobs: Array  # [T MAX_LOGPROBS] float32


def prefill(
    params: Qwen | Weights,
    state: State,
    pieces: Sequence[Piece],
    table: np.ndarray | None = None,
    *,
    tile: int | None = None,
    rows: int | None = None,
    count: int | None = None,
) -> tuple[State, Output]:
    """Compute pieces of texts, each of another slot, in one call.

    A piece that is the last of its text activates its slot and gives the first new token as its
    row of the Output [count 1]; for the others that token is -1. table: [slots blocks], the pages
    of every slot's text, where slots share them. tile, rows, count: what the call is padded to,
    tokens of a row, rows and pieces; default, few sizes.
    """
    weights = flatten(params)
    packed = _packed_for(weights, state, pieces, tile, rows, count)
    return _prefill(weights, state, packed, _own_pages(table, packed))


def pool(
    params: Qwen | Weights,
    state: State,
    pieces: Sequence[Piece],
    table: np.ndarray | None = None,
    *,
    ids: Sequence[int] | None = None,
    tile: int | None = None,
    rows: int | None = None,
    count: int | None = None,
) -> tuple[State, Array]:
    """Compute pieces; of each, float32 of its last token. The other arguments are `prefill`'s.

    That is its hidden state [count D], or the logits of `ids` [count len(ids)], as the text would
    go on with one of them. Nothing is sampled, and the slots stay idle.
    """
    weights = flatten(params)
    packed = _packed_for(weights, state, pieces, tile, rows, count)
    wanted = None if ids is None else np.asarray(ids, np.int32)
    return _pool(weights, state, packed, _own_pages(table, packed), wanted)


def _packed_for(
    weights: Weights,
    state: State,
    pieces: Sequence[Piece],
    tile: int | None,
    rows: int | None,
    count: int | None,
) -> Packed:
    """Pieces for one call; see `prefill`."""
    if tile is None:
        longest = max(len(piece.tokens) for piece in pieces)
        tile = tile_of(weights.platform, longest)
    needed = sum(rows_of(len(piece.tokens), tile) for piece in pieces)
    slots, vocab = len(state.rows.active), weights.structure.config.vocab
    return pack(pieces, slots, vocab, tile, rows or power(needed), count or power(len(pieces)))


def recall(
    params: Qwen | Weights,
    state: State,
    slot: int,
    tokens: Sequence[int],
    start: int,
    prompt_length: int,
) -> State:
    """Let a slot's text go on with tokens whose keys and values its pages hold already.

    What the slot did before ends, if they are the beginning.
    """
    weights, settings = flatten(params), SamplingArrays.of(Sampling(), (), 0)
    slots, vocab = len(state.rows.active), weights.structure.config.vocab
    for at in range(0, len(tokens), _LARGEST):
        part = tokens[at : at + _LARGEST]
        piece = Piece(slot, part, start + at, prompt_length, settings, 0, last=False)
        packed = pack([piece], slots, vocab, _LARGEST, 1, 1)
        state = _recall(weights.structure, state, packed)
    return state


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
    compile few programs. table: see prefill.
    """
    assert len(tokens) == len(following)
    weights, settings = flatten(params), SamplingArrays.of(Sampling(), (), 0)
    piece = Piece(slot, tokens, start, prompt_length, settings, 0, last=False, adapter=adapter)
    slots, vocab = len(state.rows.active), weights.structure.config.vocab
    packed = pack([piece], slots, vocab, tile, rows, 1)
    wanted = np.zeros(tile * rows, np.int32)
    wanted[: len(following)] = following
    return _score_chunk(weights, state, packed, _own_pages(table, packed), wanted)


def tile_of(platform: str, longest: int) -> int:
    """Tokens of a prefill's row where texts have up to `longest`: few sizes, few compilations."""
    if platform != "cpu":
        return min(_LARGEST, bucket(longest))
    return max(2 * _STEP_OF_CPU, min(_LARGEST_OF_CPU, -(-longest // _STEP_OF_CPU) * _STEP_OF_CPU))


def _own_pages(table: np.ndarray | None, packed: Packed) -> np.ndarray | None:
    """[C blocks]: the pages of each row's text, a copy that the host's table may outgrow."""
    return None if table is None else table[np.minimum(packed.slots, len(table) - 1)[packed.owner]]


@piece_program
def _prefill(weights: Weights, state: State, x: Array, packed: Packed) -> tuple[State, Output]:
    ends = packed.starts + packed.lengths
    remaining = packed.budgets - jnp.maximum(0, ends - packed.prompt_lengths)
    rows = replace(
        _remember(state, packed),
        positions=ends,
        prompt_lengths=packed.prompt_lengths,
        remaining=remaining,
        active=packed.last & (remaining > 0) & (packed.slots < len(state.rows.active)),
        adapters=packed.adapters,
        settings=packed.settings,
    )
    x, mesh = newest(x, packed), weights.structure.mesh

    def begin() -> tuple[Rows, Output]:
        logits = gather_logits(weights.model().logits(x), mesh)
        return sample_next(rows, logits, packed.allowed, mesh)

    def wait() -> tuple[Rows, Output]:
        return rows, Output.empty(len(rows.active), 1, rows.active)

    rows, output = jax.lax.cond(jnp.any(rows.active), begin, wait)
    texts = _told(state.texts, packed)
    if texts is not None:
        first, place = output.tokens, rows.positions[:, None]
        texts = texts.extend(packed.slots, first, place, first >= 0)
    state = State(state.cache, state.rows.put(packed.slots, rows), texts)
    return constrain(state, mesh), replicated(output, mesh)


@piece_program
def _pool(
    weights: Weights, state: State, x: Array, packed: Packed, ids: Array | None
) -> tuple[State, Array]:
    x, mesh = newest(x, packed), weights.structure.mesh
    if ids is not None:
        x = gather_logits(weights.model().logits(x), mesh)[:, ids]
    found = replicated(x.astype(jnp.float32), mesh)
    return constrain(State(state.cache, state.rows), mesh), found


@functools.partial(jax.jit, donate_argnums=1, static_argnums=0)
def _recall(structure: Structure, state: State, packed: Packed) -> State:
    rows = _remember(state, packed)
    rows = replace(rows, active=jnp.zeros_like(rows.active))
    state = State(state.cache, state.rows.put(packed.slots, rows), _told(state.texts, packed))
    return constrain(state, structure.mesh)


@piece_program
def _score_chunk(
    weights: Weights, state: State, x: Array, packed: Packed, following: Array
) -> tuple[State, Scores]:
    mesh = weights.structure.mesh
    logits = weights.model().logits(x.reshape(-1, x.shape[-1]))
    logits = gather_logits(logits, mesh)  # [T V]
    top = best(logits, jnp.bool_(True))
    logprobs = logprobs_of(jnp.column_stack([following, top]), logits)
    active = state.rows.active.at[packed.slots].set(False, mode="drop")
    state = replace(state, rows=replace(state.rows, active=active))
    return constrain(state, mesh), replicated(Scores(logprobs[:, 0], top, logprobs[:, 1:]), mesh)


def _remember(state: State, packed: Packed) -> Rows:
    """The rows of the pieces' slots, with their tokens in the history."""
    rows, owner, offsets = state.rows.take(packed.slots), packed.owner, packed.offsets()
    fresh = History.empty(len(rows.active), rows.history.prompted.shape[1])

    def anew(old: Array, new: Array) -> Array:
        begins = (packed.starts == 0).reshape(-1, *[1] * (old.ndim - 1))
        return jnp.where(begins, new, old)

    history = jax.tree.map(anew, rows.history, fresh)
    history = history.extend(
        packed.tokens,
        owner,
        real=offsets < packed.lengths[owner][:, None],
        answered=packed.starts[owner][:, None] + offsets >= packed.prompt_lengths[owner][:, None],
        first=packed.first * packed.tokens.shape[1],
        length=packed.lengths,
    )
    return replace(rows, history=history)


def _told(texts: Texts | None, packed: Packed) -> Texts | None:
    """The slots' texts with the pieces' tokens."""
    if texts is None:
        return None
    owner, offsets = packed.owner, packed.offsets()
    texts = texts.begin(packed.slots, packed.starts == 0)
    places = packed.starts[owner][:, None] + offsets
    real = offsets < packed.lengths[owner][:, None]
    return texts.extend(packed.slots[owner], packed.tokens, places, real)
