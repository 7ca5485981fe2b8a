"""The jitted inference functions: start, step, release, copy_page, score; prompts has the others.

A State holds all slots. The functions take it and give the next one; its memory is donated and
updated in place. `generate` uses them for one call's prompts, a server for its stream of
requests:

    state = start(params, slots=8, length=4096)
    state, first = prompts.prefill(params, state, pieces)  # several prompts, or part of a long one
    state, out = step(params, state, 16)                   # 16 tokens, all active slots
    state = release(params, state, slot)

A server's slots share pages, `start(..., pages=5000)`; it keeps the table from slots to pages and
passes it to each call.

Every function also takes the Weights that `flatten(params)` gives, which saves flattening the
model's tree again on each call.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.decoding import drafts
from qwen_jax.decoding.drafts import Going, Passes
from qwen_jax.decoding.flat_params import Program, Structure, Weights, flatten
from qwen_jax.decoding.logits import History, SamplingArrays
from qwen_jax.decoding.state import (
    Output,
    Rows,
    State,
    Texts,
    constrain,
    gather_logits,
    replicated,
)
from qwen_jax.nn import backends
from qwen_jax.nn.attention import PAGE
from qwen_jax.nn.backends import Backend
from qwen_jax.nn.cpu import attend as on_cpu
from qwen_jax.nn.fused import fused
from qwen_jax.nn.kv_cache import Cache, NoCache
from qwen_jax.nn.lora import select_adapters
from qwen_jax.nn.model import Qwen

_SMALLEST = 16  # tokens of a padded text


def start(
    params: Qwen | Weights,
    slots: int,
    length: int,
    cache_dtype: Any = None,
    pages: int | None = None,
    attention: str | None = None,
    draft_tokens: int = 0,
) -> State:
    """Empty slots of `length` tokens each.

    cache_dtype: a float type or int8; default, see backends.stored. pages: of kv_cache.PAGE tokens,
    which slots share as the tables say that each call is given; default, a slot has memory of its
    own. attention: "triton", "mosaic", "llvm" or "xla"; default, the platform's own where it can
    run. draft_tokens: that a step may look up in a slot's own text, and verify beside the one that
    is sure to come.
    """
    weights = flatten(params)
    backend, dtype = choose(weights, length, pages, attention, cache_dtype)
    how = dtype, pages, backend, weights.looped
    state = _start(weights.structure, slots, length, *how, draft_tokens)
    # Parameters that were loaded are bound to their devices and bind what is computed from them. A
    # state that is not would be another kind of argument, and compile everything again.
    bind = lambda x: x if x.committed else jax.device_put(x, x.sharding)
    return jax.tree.map(bind, state)


def choose(
    weights: Weights, length: int, pages: int | None, attention: str | None, cache_dtype: Any
) -> tuple[Backend, Any]:
    """What attends in such slots, and to numbers of which type; ValueError if it cannot there."""
    config, mesh, platform = weights.structure.config, weights.structure.mesh, weights.platform
    shared, page = pages is not None, length if pages is None else PAGE
    how = mesh, shared, weights.dtype, cache_dtype
    backend = backends.choose(attention, platform, config, page, *how)
    dtype = jnp.dtype(cache_dtype or backends.stored(backend, platform, weights.dtype))
    if backend.name == "llvm":
        on_cpu.register(weights.dtype, dtype, config.head_dim)
    return backend, dtype


def step(
    params: Qwen | Weights,
    state: State,
    count: int,
    allowed: np.ndarray | None = None,
    *,
    slots: np.ndarray | None = None,
    table: np.ndarray | None = None,
    width: int | None = None,
    drafting: bool = True,
) -> tuple[State, Output]:
    """`count` more tokens for every active slot; ends early when none is active.

    Where `start` was told of drafts, those that hold come beside them: `count` are the passes.

    allowed: [B W] uint32, a bit for every id that the next token may be, lowest bits first; where
    it is not all of them, count is 1. slots: [B], those that go on, in the order of the Output;
    numbers past the last slot are padding; default, all. table: [B blocks], the pages of their
    texts, where slots share pages. width: the most that `count` may be in this program. drafting:
    False where there may be no more than `count`.
    """
    width = count if width is None else width
    assert count <= width
    weights = flatten(params)
    most = drafts_of(weights, state, table)
    how = {"width": width, "most": most}
    return _step(weights, state, np.int32(count), np.bool_(drafting), allowed, slots, table, **how)


def drafts_of(weights: Weights, state: State, table: Any) -> int:
    """Most tokens of a draft in a step of these rows."""
    if state.texts is None:
        return 0
    return drafts.most(
        weights, len(state.rows.active if table is None else table), state.texts.most
    )


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
    return max(_SMALLEST, power(length))


def cache_length(prompt_length: int, new_tokens: int) -> int:
    """Cache length for a request: one of few sizes."""
    length = prompt_length + new_tokens
    unit = max(64, power(length) // 8)
    return -(-length // unit) * unit


def power(length: int) -> int:
    """The next power of two."""
    return 1 << max(0, length - 1).bit_length()


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5, 6, 7))
def _start(
    structure: Structure,
    slots: int,
    length: int,
    cache_dtype: Any,
    pages: int | None,
    backend: Backend,
    looped: bool,
    draft_tokens: int,
) -> State:
    config = structure.config
    if pages is None:
        cache = Cache.empty(config, slots, length, cache_dtype, backend, looped)
    else:
        cache = Cache.paged(config, pages, cache_dtype, backend, looped)
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
    texts = Texts.empty(slots, length, draft_tokens) if draft_tokens else None
    return constrain(State(cache, rows, texts), structure.mesh)


@functools.partial(Program, donate_argnums=1, static_argnames=("width", "most"))
def _step(
    weights: Weights,
    state: State,
    count: Array,
    drafting: Array,
    allowed: Array | None,
    slots: Array | None,
    table: Array | None,
    *,
    width: int,
    most: int,
) -> tuple[State, Output]:
    rows, mesh = state.rows.take(slots), weights.structure.mesh
    number = len(rows.active)
    passes = Passes(
        model=fused(select_adapters(weights.model(), rows.adapters), state.cache.backend),
        mesh=mesh,
        slots=jnp.arange(number) if slots is None else slots,
        table=table,
        allowed=allowed,
        drafting=drafting,
        shadowed=table is not None and number == 1 and not weights.hosted,
    )
    output = Output.empty(number, width * (1 + most), rows.active)
    if state.texts is not None:
        output = replace(output, drafts=jnp.zeros((number, 3), jnp.int32))
    filled = jnp.zeros(number, jnp.int32)
    going = Going(state.cache, rows, state.texts, output, filled, jnp.int32(0))
    going = passes.run(going, count, most)
    state = State(going.cache, state.rows.put(slots, going.rows), going.texts)
    return constrain(state, mesh), replicated(going.output, mesh)


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
    x, _ = model(tokens, positions, lengths, NoCache(weights.structure.mesh))
    return gather_logits(model.logits(x), weights.structure.mesh)
