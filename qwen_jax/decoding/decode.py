"""The only jitted inference functions: start, prefill, step, release, and score.

A State holds all slots. The functions take it and give the next one; its memory is donated and
updated in place. `generate` uses them for one call's prompts, a server for its stream of
requests:

    state = start(params, slots=8, length=4096)
    state, first = prefill(params, state, slot, tokens, start=0, ...)  # one chunk of a prompt
    state, out = step(params, state, 16)                               # 16 tokens, all active slots
    state = release(params, state, slot)

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
from qwen_jax.decoding.logits import History, SamplingArrays, best, every_id, sample, stopped
from qwen_jax.decoding.state import Output, State, constrain, gather_logits, replicated
from qwen_jax.nn.kv_cache import Cache, NoCache
from qwen_jax.nn.lora import select_adapters
from qwen_jax.nn.model import Qwen

CHUNK = 2048  # most tokens one prefill call takes
_SMALLEST = 16  # tokens of the smallest prefill


def start(params: Qwen | Weights, slots: int, length: int, cache_dtype: Any = None) -> State:
    """Empty slots of `length` tokens each.

    cache_dtype: a float type or int8; default the model's, but float32 on a CPU, which widens
    shorter floats again at every step.
    """
    weights = flatten(params)
    default = jnp.float32 if weights.platform == "cpu" else weights.dtype
    return _start(weights.structure, slots, length, jnp.dtype(cache_dtype or default))


def prefill(
    params: Qwen | Weights,
    state: State,
    slot: int,
    tokens: Sequence[int],
    *,
    start: int,
    prompt_length: int,
    settings: SamplingArrays,
    max_new_tokens: int,
    allowed: np.ndarray | None = None,
    size: int | None = None,
    adapter: int = 0,
) -> tuple[State, Output]:
    """Put a chunk of a prompt into a slot: its tokens from position `start` on.

    The chunk that reaches prompt_length activates the slot and gives the first new token as
    Output [1 1]; for earlier ones that token is -1. settings: of this request, B = 1.
    allowed: [1 W], the ids that the first new token may be, default all; see `step`. size: what
    the chunk is padded to, default its bucket. adapter: by number, of those that
    `adapters.add_all` put into params.
    """
    size = bucket(len(tokens)) if size is None else size
    needed = max(start + size, prompt_length + max_new_tokens)
    assert needed <= state.cache.length, "prompt and answer must fit: see cache_length"
    padded = np.zeros(size, np.int32)
    padded[: len(tokens)] = tokens
    weights = flatten(params)
    return _prefill(
        weights,
        state,
        np.int32(slot),
        padded,
        np.int32(start),
        np.int32(len(tokens)),
        np.int32(prompt_length),
        settings,
        np.int32(max_new_tokens),
        np.int32(adapter),
        every_id(weights.structure.config.vocab) if allowed is None else allowed,
        window=min(state.cache.length, _power(start + size)),
    )


def step(
    params: Qwen | Weights, state: State, count: int, allowed: np.ndarray | None = None
) -> tuple[State, Output]:
    """Up to `count` more tokens for every active slot; ends early when none is active.

    allowed: [B W] uint32, a bit for every id that the next token may be, lowest bits first; then
    count is 1. A slot without any bit waits: it stays as it is.
    """
    assert allowed is None or count == 1, "each token needs a mask of its own"
    return _step(flatten(params), state, count, allowed)


def release(params: Qwen | Weights, state: State, slot: int) -> State:
    """Stop a slot; its memory is free for the next prefill."""
    return _release(flatten(params).structure, state, np.int32(slot))


def score(params: Qwen | Weights, tokens: Array | np.ndarray) -> Array:
    """Logits of whole texts: tokens [B T] -> float32 [B T V]."""
    batch, length = tokens.shape
    padded = np.pad(np.asarray(tokens, np.int32), ((0, 0), (0, bucket(length) - length)))
    return _score(flatten(params), padded, np.full(batch, length, np.int32))[:, :length]


def bucket(length: int) -> int:
    """The padded size a chunk of a prompt is computed at: few sizes, so few compilations."""
    return max(_SMALLEST, _power(length))


def cache_length(prompt_length: int, new_tokens: int) -> int:
    """Cache length for a request: one of few sizes, with space for the last chunk's padding."""
    whole, rest = divmod(prompt_length, CHUNK)
    padded = whole * CHUNK + (bucket(rest) if rest else 0)
    length = max(prompt_length + new_tokens, padded)
    unit = max(64, _power(length) // 8)
    return -(-length // unit) * unit


def _power(length: int) -> int:
    return 1 << max(0, length - 1).bit_length()


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(structure: Structure, slots: int, length: int, cache_dtype: Any) -> State:
    zeros = functools.partial(jnp.zeros, slots, jnp.int32)
    state = State(
        cache=Cache.empty(structure.config, slots, length, cache_dtype),
        tokens=zeros(),
        positions=zeros(),
        prompt_lengths=zeros(),
        remaining=zeros(),
        active=jnp.zeros(slots, bool),
        adapters=zeros(),
        history=History.empty(slots, structure.config.vocab),
        settings=SamplingArrays.empty(slots),
    )
    return constrain(state, structure.mesh)


@functools.partial(Program, donate_argnums=1, static_argnames="window")
def _prefill(
    weights: Weights,
    state: State,
    slot: Array,
    tokens: Array,  # [T], of which the first `length` are real
    start: Array,
    length: Array,
    prompt_length: Array,
    settings: SamplingArrays,
    max_new_tokens: Array,
    adapter: Array,
    allowed: Array,
    *,
    window: int,
) -> tuple[State, Output]:
    model, mesh = select_adapters(weights.model(), adapter[None]), weights.structure.mesh
    offsets = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    cache = state.cache.select(slot, window)
    x, cache = model(tokens[None], (start + offsets)[None], prompt_length[None], cache)
    last = jax.lax.dynamic_index_in_dim(x, length - 1, axis=1, keepdims=False)
    logits = gather_logits(model.logits(last), mesh)

    row = state.read_slot(slot)
    fresh = History.empty(1, model.config.vocab)
    history = jax.tree.map(lambda old, new: jnp.where(start > 0, old, new), row.history, fresh)
    end = (start + length)[None]
    row = replace(
        row,
        cache=cache.select(None, None),
        positions=end,
        prompt_lengths=prompt_length[None],
        remaining=max_new_tokens[None],
        active=(end == prompt_length) & (max_new_tokens > 0),
        adapters=adapter[None],
        history=history.prompt(tokens, length),
        settings=settings,
    )
    row, output = sample_next(row, logits, allowed)
    return constrain(state.write_slot(slot, row), mesh), replicated(output, mesh)


@functools.partial(Program, donate_argnums=1, static_argnums=2)
def _step(
    weights: Weights, state: State, count: int, allowed: Array | None
) -> tuple[State, Output]:
    model, mesh = select_adapters(weights.model(), state.adapters), weights.structure.mesh

    def more(carry: tuple[Array, State, Output]) -> Array:
        done, state, _ = carry
        return (done < count) & jnp.any(state.active)

    def one(carry: tuple[Array, State, Output]) -> tuple[Array, State, Output]:
        done, state, output = carry
        tokens, positions = state.tokens[:, None], state.positions[:, None]
        moving = _moving(state, allowed)
        longest = jnp.max(jnp.where(moving, state.positions, 0)) + 1
        cache = state.cache.select(None, None, longest)
        x, cache = model(tokens, positions, state.prompt_lengths, cache)
        cache = cache.select(None, None)
        state = replace(state, cache=cache, positions=state.positions + moving)
        state, new = sample_next(state, gather_logits(model.logits(x[:, 0]), mesh), allowed)
        return done + 1, state, output.write_column(done, new)

    output = Output.empty(state.tokens.shape[0], count, state.active)
    _, state, output = jax.lax.while_loop(more, one, (jnp.int32(0), state, output))
    return constrain(state, mesh), replicated(output, mesh)


@functools.partial(jax.jit, donate_argnums=1, static_argnums=0)
def _release(structure: Structure, state: State, slot: Array) -> State:
    return constrain(replace(state, active=state.active.at[slot].set(False)), structure.mesh)


@Program
def _score(weights: Weights, tokens: Array, lengths: Array) -> Array:
    model = weights.model()
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    x, _ = model(tokens, positions, lengths, NoCache())
    return gather_logits(model.logits(x), weights.structure.mesh)


def _moving(state: State, allowed: Array | None) -> Array:
    """Which slots [B] get a token: the active ones whose mask has any id."""
    return state.active if allowed is None else state.active & jnp.any(allowed != 0, axis=-1)


@jax.named_scope("sampling")
def sample_next(state: State, logits: Array, allowed: Array | None) -> tuple[State, Output]:
    """The next token of every slot that moves, from logits [B V], and the state that follows."""
    active, settings = _moving(state, allowed), state.settings
    tokens = sample(logits, settings, state.history, state.positions, allowed)
    tokens = jnp.where(active, tokens, state.tokens)
    history = state.history.append(tokens, active)
    remaining = state.remaining - active
    going = state.active & (remaining > 0) & ~stopped(settings, history)

    logprobs = jax.nn.log_softmax(logits, axis=-1)
    top_tokens, top_logprobs = best(logprobs, jnp.any(settings.logprobs & active))
    output = Output(
        tokens=jnp.where(active, tokens, -1)[:, None],
        logprobs=jnp.take_along_axis(logprobs, tokens[:, None], axis=1),
        top_tokens=top_tokens[:, None],
        top_logprobs=top_logprobs[:, None],
        active=going,
    )
    state = replace(state, tokens=tokens, history=history, remaining=remaining, active=going)
    return state, output
