"""Choosing the next token of every row."""

import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from qwen_jax.decoding.logits import (
    History,
    SamplingArrays,
    best,
    logprobs_of,
    penalize,
    softmax,
    stopped,
    warp,
)
from qwen_jax.decoding.state import Output, Rows
from qwen_jax.nn import sharding
from qwen_jax.nn.sums import row_sum

_GROUP = 8  # rows whose logits are worked on at once, but on a CPU


@jax.named_scope("sampling")
def sample_next(
    rows: Rows, logits: Array, allowed: Array | None, mesh: Mesh | None
) -> tuple[Rows, Output]:
    """The next token of every active row, from logits [B V], and the rows that follow."""
    asked = rows, logits, allowed
    if mesh is not None and sharding.ways(mesh, "slot") > 1:
        one = _Chosen.of(*asked)
    else:
        one = jax.lax.platform_dependent(*asked, cpu=_one_by_one, default=_in_groups)
    tokens, active, settings = one.tokens, rows.active, rows.settings
    history = rows.history.append(tokens, active)
    remaining = rows.remaining - active
    going = active & (remaining > 0) & ~stopped(settings, history)
    output = Output(
        tokens=jnp.where(active, tokens, -1)[:, None],
        logprobs=one.logprobs[:, None],
        top_tokens=one.top_tokens[:, None],
        top_logprobs=one.top_logprobs[:, None],
        active=going,
    )
    rows = replace(rows, tokens=tokens, history=history, remaining=remaining, active=going)
    return rows, output


class _Chosen(NamedTuple):
    """Of every row: its newest token, and what is told of it."""

    tokens: Array  # [B]
    logprobs: Array  # [B]
    top_tokens: Array  # [B MAX_LOGPROBS]
    top_logprobs: Array

    @staticmethod
    def of(rows: Rows, logits: Array, allowed: Array | None) -> "_Chosen":
        active, settings = rows.active, rows.settings
        tokens = sample(logits, settings, rows.history, rows.positions, allowed)
        tokens = jnp.where(active, tokens, rows.tokens)
        wanted = jnp.any(settings.logprobs & active)
        top = best(logits, wanted)
        logprobs = logprobs_of(jnp.column_stack([tokens, top]), logits)
        return _Chosen(tokens, logprobs[:, 0], top, jnp.where(wanted, logprobs[:, 1:], 0))


def _in_groups(rows: Rows, logits: Array, allowed: Array | None) -> _Chosen:
    """Some rows after others: a copy of 64 rows' logits takes 37 MiB."""
    count = len(logits)
    if count <= _GROUP:
        return _Chosen.of(rows, logits, allowed)
    return _in_turn(_GROUP, -(-count // _GROUP), rows, logits, allowed)


def _one_by_one(rows: Rows, logits: Array, allowed: Array | None) -> _Chosen:
    """Each row up to the last active one in its turn, which XLA does not know beforehand.

    XLA's CPU computes exponentials and sums of few rows in another order than those of many, and
    16 rows at once in three times the time of 8 and 8.
    """
    places = jnp.arange(1, len(logits) + 1)
    return _in_turn(1, jnp.max(places * rows.active), rows, logits, allowed)


def _in_turn(
    size: int, turns: int | Array, rows: Rows, logits: Array, allowed: Array | None
) -> _Chosen:
    """So many turns of `size` rows each; the last of them may begin in the one before."""
    asked = rows, logits, allowed

    def more(number: Array, found: _Chosen) -> _Chosen:
        start = jnp.minimum(number * size, len(logits) - size)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size)
        put = lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, start, axis=0)
        return jax.tree.map(put, found, _Chosen.of(*jax.tree.map(cut, asked)))

    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    nothing = jax.tree.map(zeros, jax.eval_shape(_Chosen.of, *asked))
    return jax.lax.fori_loop(0, turns, more, nothing._replace(tokens=rows.tokens))


def sample(
    logits: Array,
    settings: SamplingArrays,
    history: History,
    positions: Array,
    allowed: Array | None = None,
) -> Array:
    """Logits [B V] float32 -> tokens [B] int32. positions [B]: where each token will stand.

    Random numbers come from the request's key and the position alone, so neither neighbours
    nor the slot nor the batch size change what a request draws. allowed: a mask [B W] of ids.
    """
    logits = penalize(logits, settings, history)
    if allowed is not None:
        every = jnp.all(allowed == jnp.uint32(0xFFFFFFFF))
        logits = jax.lax.cond(every, lambda: logits, lambda: _masked(logits, allowed))
    best = jax.lax.platform_dependent(logits, cpu=_first_highest, default=_argmax)

    def draw() -> Array:
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(settings.key), positions)
        drawn = pick(softmax(warp(logits, settings)), jax.vmap(jax.random.uniform)(keys))
        return jnp.where(settings.temperature > 0, drawn, best)

    return jax.lax.cond(jnp.any(settings.temperature > 0), draw, lambda: best)


def _argmax(logits: Array) -> Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _first_highest(logits: Array) -> Array:
    """The same where none is NaN, four times as fast as XLA's CPU, which takes them singly."""
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == highest, ids, ids[-1]), axis=-1)


def _masked(logits: Array, allowed: Array) -> Array:
    bits = allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
    bits = bits.reshape(logits.shape[0], -1)[:, : logits.shape[1]]
    return jnp.where(bits == 1, logits, -jnp.inf)


def pick(weights: Array, point: Array) -> Array:
    """The id at which the running sum of weights [B V] passes `point` [B] of 0 to 1 of the total.

    Summed in about sqrt(V) runs, to search the runs and then one run: a cumulative sum over all
    of V is slow everywhere, and so is a random number for each id.
    """
    batch, vocab = weights.shape
    width = math.isqrt(vocab - 1) + 1
    runs = jnp.pad(weights, ((0, 0), (0, width * width - vocab))).reshape(batch, width, width)

    def search(parts: Array, point: Array) -> tuple[Array, Array]:
        ends = jnp.cumsum(parts, axis=-1)
        point = jnp.minimum(point, ends[:, -1] * (1 - 2**-23))  # rounding must not pass the end
        index = jnp.argmax(ends > point[:, None], axis=-1)[:, None]
        before = jnp.take_along_axis(ends - parts, index, axis=1)[:, 0]
        return index, jnp.maximum(point - before, 0)

    sums = row_sum(runs)
    run, rest = search(sums, point * row_sum(sums))
    index, _ = search(jnp.take_along_axis(runs, run[:, :, None], axis=1)[:, 0], rest)
    return (run * width + index)[:, 0].astype(jnp.int32)
