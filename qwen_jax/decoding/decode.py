"""The only jitted inference functions: start, prefill, recall, step, release, copy_page, score.

A State holds all slots. The functions take it and give the next one; its memory is donated and
updated in place. `generate` uses them for one call's prompts, a server for its stream of
requests:

    state = start(params, slots=8, length=4096)
    state, first = prefill(params, state, pieces)   # of several prompts, or of a long one
    state, out = step(params, state, 16)            # 16 tokens, all active slots
    state = release(params, state, slot)

A server's slots share pages, `start(..., pages=5000)`; it keeps the table from slots to pages and
passes it to each call.

Every function also takes the Weights that `flatten(params)` gives, which saves flattening the
model's tree again on each call.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.decoding.flat_params import Program, Structure, Weights, flatten
from qwen_jax.decoding.logits import History, SamplingArrays, best, sample, stopped
from qwen_jax.decoding.pieces import Packed, Piece, pack, rows_of
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import Output, Rows, State, constrain, gather_logits, replicated
from qwen_jax.nn.kv_cache import Cache, NoCache
from qwen_jax.nn.lora import select_adapters
from qwen_jax.nn.model import Qwen

CHUNK = 2048  # most tokens one prefill call takes
_SMALLEST = 16  # tokens of the smallest row of a prefill
_TILE = {"cpu": 32}  # tokens of its largest: rows of one text read its keys once each
_LARGEST = 512


def start(
    params: Qwen | Weights,
    slots: int,
    length: int,
    cache_dtype: Any = None,
    pages: int | None = None,
) -> State:
    """Empty slots of `length` tokens each.

    cache_dtype: a float type or int8; default the model's, but float32 on a CPU, which widens
    shorter floats again at every step. pages: of kv_cache.PAGE tokens, which slots share as the
    tables say that each call is given; default, a slot has memory of its own.
    """
    weights = flatten(params)
    default = jnp.float32 if weights.platform == "cpu" else weights.dtype
    return _start(weights.structure, slots, length, jnp.dtype(cache_dtype or default), pages)


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
    if tile is None:
        longest = max(len(piece.tokens) for piece in pieces)
        tile = min(tile_of(weights.platform), bucket(longest))
    needed = sum(rows_of(len(piece.tokens), tile) for piece in pieces)
    slots = len(state.rows.active)
    packed = pack(
        pieces,
        slots,
        weights.structure.config.vocab,
        tile,
        rows or _power(needed),
        count or _power(len(pieces)),
    )
    return _prefill(weights, state, packed, own_pages(table, packed))


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


def step(
    params: Qwen | Weights,
    state: State,
    count: int,
    allowed: np.ndarray | None = None,
    *,
    slots: np.ndarray | None = None,
    table: np.ndarray | None = None,
    width: int | None = None,
) -> tuple[State, Output]:
    """Up to `count` more tokens for every active slot; ends early when none is active.

    allowed: [B W] uint32, a bit for every id that the next token may be, lowest bits first; where
    it is not all of them, count is 1. slots: [B], those that go on, in the order of the Output;
    numbers past the last slot are padding; default, all. table: [b blocks], the pages of the texts
    of the first b of them, which are the ones that go on, where slots share pages. width: the most
    that `count` may be in this program.
    """
    width = count if width is None else width
    assert count <= width
    return _step(flatten(params), state, np.int32(count), allowed, slots, table, width=width)


def release(params: Qwen | Weights, state: State, slot: int) -> State:
    """Stop a slot; its memory is free for the next prefill."""
    return _release(flatten(params).structure, state, np.int32(slot))


def copy_page(params: Qwen | Weights, state: State, source: int, target: int) -> State:
    """Give a page what another holds, so that one slot may write on where another does too."""
    return _copy_page(flatten(params).structure, state, np.int32(source), np.int32(target))


def score(params: Qwen | Weights, tokens: Array | np.ndarray) -> Array:
    """Logits of whole texts: tokens [B T] -> float32 [B T V]."""
    batch, length = tokens.shape
    padded = np.pad(np.asarray(tokens, np.int32), ((0, 0), (0, bucket(length) - length)))
    return _score(flatten(params), padded, np.full(batch, length, np.int32))[:, :length]


def bucket(length: int) -> int:
    """A padded number of tokens: few sizes, so few compilations."""
    return max(_SMALLEST, _power(length))


def tile_of(platform: str) -> int:
    """Most tokens of a prefill's row."""
    return _TILE.get(platform, _LARGEST)


def cache_length(prompt_length: int, new_tokens: int) -> int:
    """Cache length for a request: one of few sizes."""
    length = prompt_length + new_tokens
    unit = max(64, _power(length) // 8)
    return -(-length // unit) * unit


def own_pages(table: np.ndarray | None, packed: Packed) -> np.ndarray | None:
    """[C blocks]: the pages of each row's text, a copy that the host's table may outgrow."""
    return None if table is None else table[np.minimum(packed.slots, len(table) - 1)[packed.owner]]


def _power(length: int) -> int:
    return 1 << max(0, length - 1).bit_length()


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _start(
    structure: Structure, slots: int, length: int, cache_dtype: Any, pages: int | None = None
) -> State:
    config = structure.config
    if pages is None:
        cache = Cache.empty(config, slots, length, cache_dtype)
    else:
        cache = Cache.paged(config, pages, cache_dtype)
    zeros = functools.partial(jnp.zeros, slots, jnp.int32)
    rows = Rows(
        tokens=zeros(),
        positions=zeros(),
        prompt_lengths=zeros(),
        remaining=zeros(),
        active=jnp.zeros(slots, bool),
        adapters=zeros(),
        history=History.empty(slots, config.vocab),
        settings=SamplingArrays.empty(slots),
    )
    return constrain(State(cache, rows), structure.mesh)


@functools.partial(Program, donate_argnums=1)
def _prefill(
    weights: Weights, state: State, packed: Packed, table: Array | None
) -> tuple[State, Output]:
    x, cache = compute(weights, state, packed, table)
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
    newest = packed.first * packed.tokens.shape[1] + packed.lengths - 1
    x = x.reshape(-1, x.shape[-1]).at[newest].get(mode="clip")
    mesh = weights.structure.mesh

    def begin() -> tuple[Rows, Output]:
        logits = gather_logits(weights.model().logits(x), mesh)
        return sample_next(rows, logits, packed.allowed)

    def wait() -> tuple[Rows, Output]:
        return rows, Output.empty(len(rows.active), 1, rows.active)

    rows, output = jax.lax.cond(jnp.any(rows.active), begin, wait)
    state = State(cache, state.rows.put(packed.slots, rows))
    return constrain(state, mesh), replicated(output, mesh)


@functools.partial(jax.jit, donate_argnums=1, static_argnums=0)
def _recall(structure: Structure, state: State, packed: Packed) -> State:
    rows = _remember(state, packed)
    rows = replace(rows, active=jnp.zeros_like(rows.active))
    return constrain(replace(state, rows=state.rows.put(packed.slots, rows)), structure.mesh)


@functools.partial(Program, donate_argnums=1, static_argnames="width")
def _step(
    weights: Weights,
    state: State,
    count: Array,
    allowed: Array | None,
    slots: Array | None,
    table: Array | None,
    *,
    width: int,
) -> tuple[State, Output]:
    rows, mesh = state.rows.take(slots), weights.structure.mesh
    live = len(rows.active) if table is None else len(table)  # rows that the network computes
    model = select_adapters(weights.model(), rows.adapters[:live])
    Carry = tuple[Array, Cache, Rows, Output]

    def more(carry: Carry) -> Array:
        done, _, rows, _ = carry
        return (done < count) & jnp.any(rows.active)

    def one(carry: Carry) -> Carry:
        done, cache, rows, output = carry
        ends = jnp.where(rows.active, rows.positions + 1, 0)
        tokens, positions = rows.tokens[:live, None], rows.positions[:live, None]
        cache = cache.select(table, ends[:live])
        x, cache = model(tokens, positions, rows.prompt_lengths[:live], cache)
        x = jnp.pad(x[:, 0], ((0, len(rows.active) - live), (0, 0)))
        rows = replace(rows, positions=rows.positions + rows.active)
        logits = gather_logits(model.logits(x), mesh)
        rows, new = sample_next(rows, logits, allowed)
        return done + 1, cache.select(None, None), rows, output.write_column(done, new)

    output = Output.empty(len(rows.active), width, rows.active)
    carry = (jnp.int32(0), state.cache, rows, output)
    _, cache, rows, output = jax.lax.while_loop(more, one, carry)
    state = State(cache, state.rows.put(slots, rows))
    return constrain(state, mesh), replicated(output, mesh)


@functools.partial(jax.jit, donate_argnums=1, static_argnums=0)
def _release(structure: Structure, state: State, slot: Array) -> State:
    rows = replace(state.rows, active=state.rows.active.at[slot].set(False))
    return constrain(replace(state, rows=rows), structure.mesh)


@functools.partial(jax.jit, donate_argnums=1, static_argnums=0)
def _copy_page(structure: Structure, state: State, source: Array, target: Array) -> State:
    return constrain(replace(state, cache=state.cache.copy(source, target)), structure.mesh)


@Program
def _score(weights: Weights, tokens: Array, lengths: Array) -> Array:
    model = weights.model()
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    x, _ = model(tokens, positions, lengths, NoCache())
    return gather_logits(model.logits(x), weights.structure.mesh)


def compute(
    weights: Weights, state: State, packed: Packed, table: Array | None
) -> tuple[Array, Cache]:
    """Hidden states [C T D] of pieces, and the cache that holds them."""
    offsets, owner = packed.offsets(), packed.owner
    model = select_adapters(weights.model(), packed.adapters[owner])
    positions = packed.starts[owner][:, None] + offsets
    tile = packed.tokens.shape[1]
    count = jnp.clip(packed.lengths[owner] - offsets[:, 0], 0, tile)
    ends = jnp.where(count > 0, positions[:, 0] + count, 0)
    if table is None:
        table = packed.slots[owner][:, None]
    cache = state.cache.select(table, ends)
    x, cache = model(packed.tokens, positions, packed.prompt_lengths[owner], cache)
    return x, cache.select(None, None)


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


@jax.named_scope("sampling")
def sample_next(rows: Rows, logits: Array, allowed: Array | None) -> tuple[Rows, Output]:
    """The next token of every active row, from logits [B V], and the rows that follow."""
    active, settings = rows.active, rows.settings
    tokens = sample(logits, settings, rows.history, rows.positions, allowed)
    tokens = jnp.where(active, tokens, rows.tokens)
    history = rows.history.append(tokens, active)
    remaining = rows.remaining - active
    going = active & (remaining > 0) & ~stopped(settings, history)

    logprobs = jax.nn.log_softmax(logits, axis=-1)
    top_tokens, top_logprobs = best(logprobs, jnp.any(settings.logprobs & active))
    output = Output(
        tokens=jnp.where(active, tokens, -1)[:, None],
        logprobs=jnp.take_along_axis(logprobs, tokens[:, None], axis=1),
        top_tokens=top_tokens[:, None],
        top_logprobs=top_logprobs[:, None],
        active=going,
    )
    rows = replace(rows, tokens=tokens, history=history, remaining=remaining, active=going)
    return rows, output
