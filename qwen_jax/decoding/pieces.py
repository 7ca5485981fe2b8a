"""Pieces of prompts, how several of them share one call, and the programs that compute them.

A call computes rows of T tokens. A piece takes as many rows as it needs, one after another, so a
batch of short prompts is one call, and so is a part of a long one.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.decoding.flat_params import PART, Program, Weights, postponed
from qwen_jax.decoding.logits import SamplingArrays, every_id
from qwen_jax.decoding.state import State
from qwen_jax.nn.fused import fused
from qwen_jax.nn.kv_cache import Cache
from qwen_jax.nn.lora import select_adapters
from qwen_jax.nn.rope import Where


@dataclass(frozen=True)
class Piece:
    """Tokens of a slot's text from position `start` on.

    An answer that was interrupted comes back behind its prompt: positions from prompt_length on
    are its, and it goes on as if nothing had been.
    """

    slot: int
    tokens: Sequence[int]
    start: int
    prompt_length: int
    settings: SamplingArrays  # of this request, B = 1
    max_new_tokens: int  # of the whole answer
    last: bool  # the text ends here, and its next token is wanted
    allowed: np.ndarray | None = None  # [1 W], the ids that token may be, default all
    adapter: int = 0  # by number, of those that `adapters.add_all` put into params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """Pieces as arrays of the host: C rows of T tokens, and B pieces that they belong to."""

    tokens: Any  # [C T] int32, as all that have no other type
    owner: Any  # [C] which piece a row belongs to
    slots: Any  # [B]; past the last slot where there is no piece
    first: Any  # [B] the first of its rows
    starts: Any  # [B]
    lengths: Any  # [B]
    prompt_lengths: Any  # [B]
    budgets: Any  # [B] max_new_tokens
    last: Any  # [B] bool
    adapters: Any  # [B]
    allowed: Any  # [B W] uint32
    settings: SamplingArrays

    def offsets(self) -> Any:
        """[C T]: how far into its piece each token is."""
        rows, tile = self.tokens.shape
        return (np.arange(rows)[:, None] * tile + np.arange(tile)) - (self.first * tile)[
            self.owner
        ][:, None]


def rows_of(tokens: int, tile: int) -> int:
    """How many rows a piece of so many tokens takes."""
    return -(-tokens // tile)


def pack(
    pieces: Sequence[Piece], slots: int, vocab: int, tile: int, rows: int, count: int
) -> Packed:
    """Pieces in `rows` rows of `tile` tokens, with room for `count` of them."""
    needed = [rows_of(len(piece.tokens), tile) for piece in pieces]
    assert sum(needed) <= rows
    assert len(pieces) <= count
    tokens = np.zeros((rows, tile), np.int32)
    owner = np.full(rows, len(pieces) - 1, np.int32)
    first = np.zeros(count, np.int32)
    at = 0
    for number, (piece, own) in enumerate(zip(pieces, needed, strict=True)):
        tokens.reshape(-1)[at * tile : at * tile + len(piece.tokens)] = piece.tokens
        owner[at : at + own], first[number] = number, at
        at += own
    missing = count - len(pieces)
    whole = lambda values, rest=0: np.array([*values, *[rest] * missing], np.int32)
    every = every_id(vocab)
    allowed = [every if piece.allowed is None else piece.allowed for piece in pieces]
    stack = lambda *parts: np.concatenate([*parts, *[parts[0]] * missing])
    return Packed(
        tokens=tokens,
        owner=owner,
        slots=whole([piece.slot for piece in pieces], slots),
        first=first,
        starts=whole([piece.start for piece in pieces]),
        lengths=whole([len(piece.tokens) for piece in pieces]),
        prompt_lengths=whole([piece.prompt_length for piece in pieces]),
        budgets=whole([piece.max_new_tokens for piece in pieces]),
        last=whole([piece.last for piece in pieces]).astype(bool),
        adapters=whole([piece.adapter for piece in pieces]),
        allowed=np.concatenate([*allowed, *[every] * missing]),
        settings=jax.tree.map(stack, *[piece.settings for piece in pieces]),
    )


def share(
    lengths: Sequence[int], tile: int, rows: int, full: bool = False
) -> Iterator[list[tuple[int, int, int]]]:
    """Calls that compute texts of these lengths: of each, (text, start, end) of its pieces.

    full: each of a power of two of rows, up to `rows`, so that none is padded with rows of nothing.
    """
    waiting = sum(rows_of(length, tile) for length in lengths)
    size = lambda: min(rows, 1 << (waiting.bit_length() - 1)) if full else rows
    call: list[tuple[int, int, int]] = []
    left = size()
    for text, length in enumerate(lengths):
        start = 0
        while start < length:
            if left == 0:
                yield call
                call, left = [], size()
            end = min(length, start + left * tile)
            call.append((text, start, end))
            taken = rows_of(end - start, tile)
            left, waiting = left - taken, waiting - taken
            start = end
    yield call


# --- what computes them -----------------------------------------------------------------------
class PieceProgram:
    """Programs that compute pieces and then do something with their hidden states.

    finish(weights, state, x, packed, ...) -> the state and what is wanted of x [C T D]; weights are
    those around the blocks, and the state's memory may be used again. On one CPU every few blocks
    are a call of their own: equal calls share a program, which is made, or read, in a fraction of
    the time that all blocks take in one. Elsewhere that would cost launches: all is one program.
    """

    def __init__(self, finish: Callable[..., tuple[State, Any]]):
        @functools.wraps(finish)
        def behind(weights: Weights, state: State, x: Array, packed: Packed, *more: Any) -> Any:
            return finish(weights, state, weights.model().norm(x), packed, *more)

        @functools.wraps(finish)
        def whole(
            weights: Weights, state: State, packed: Packed, table: Array | None, *more: Any
        ) -> Any:
            x, call = enter(weights, packed, table)
            x, cache = through(weights, state.cache, x, call)
            return behind(weights, replace(state, cache=cache), x, packed, *more)

        self.whole = Program(whole, donate_argnums=1)
        self.behind = Program(behind, donate_argnums=1)

    def __call__(
        self, weights: Weights, state: State, packed: Packed, table: Any, *more: Any
    ) -> tuple[State, Any]:
        """table [C blocks]: the pages of each row's text, where slots share them."""
        if (begun := postponed()) is not None:
            begun += self.prepare(weights, state, packed, table, *more)
            return state, None
        if not weights.structure.one_cpu:
            made: tuple[State, Any] = self.whole(weights, state, packed, table, *more)
            return made
        around, parts = weights.parts
        x, call = _enter(around, packed, table)
        caches: list[Cache] = []
        for part, cache in zip(parts, state.cache.parts(PART), strict=True):
            x, cache = _through(part, cache, x, call)
            caches.append(cache)
        state, wanted = self.behind(around, _without_cache(state), x, packed, *more)
        keys, values = (sum((getattr(c, kind) for c in caches), ()) for kind in ("keys", "values"))
        return replace(state, cache=replace(state.cache, keys=keys, values=values)), wanted

    def prepare(
        self, weights: Weights, state: State, packed: Packed, table: Any, *more: Any
    ) -> list[Future[Any]]:
        """Have it ready when it is called; see Program.prepare."""
        if not weights.structure.one_cpu:
            return self.whole.prepare(weights, state, packed, table, *more)
        around, parts = weights.parts
        x, call = jax.eval_shape(enter, around, packed, table)
        futures = _enter.prepare(around, packed, table)
        for part, cache in zip(parts, state.cache.parts(PART), strict=True):
            futures += _through.prepare(part, cache, x, call)
        return futures + self.behind.prepare(around, _without_cache(state), x, packed, *more)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Call:
    """What every block must know of a call's rows."""

    where: Where
    adapters: Array  # [C]
    table: Array  # [C blocks]
    ends: Array  # [C] tokens of a row's text with those of the row; 0 for a row of nothing


def enter(weights: Weights, packed: Packed, table: Array | None) -> tuple[Array, Call]:
    """What the first block gets [C T D]."""
    offsets, owner = packed.offsets(), packed.owner
    positions = packed.starts[owner][:, None] + offsets
    tile = packed.tokens.shape[1]
    count = jnp.clip(packed.lengths[owner] - offsets[:, 0], 0, tile)
    ends = jnp.where(count > 0, positions[:, 0] + count, 0)
    if table is None:
        table = packed.slots[owner][:, None]
    where = Where.of(weights.structure.config, positions, packed.prompt_lengths[owner])
    call = Call(where, packed.adapters[owner], table, ends)
    return weights.model().embedded(packed.tokens), call


def through(weights: Weights, cache: Cache, x: Array, call: Call) -> tuple[Array, Cache]:
    """What comes out of the blocks that these weights have."""
    model = fused(select_adapters(weights.model(), call.adapters), cache.backend)
    x, cache = model.through(x, call.where, cache.select(call.table, call.ends))
    return x, cache.select(None, None)


_enter = Program(enter)
_through = Program(through, donate_argnums=(1, 2))


def newest(x: Array, packed: Packed) -> Array:
    """Of hidden states [C T D], those [B D] of the pieces' last tokens."""
    last = packed.first * packed.tokens.shape[1] + packed.lengths - 1
    return x.reshape(-1, x.shape[-1]).at[last].get(mode="clip")


def _without_cache(state: State) -> State:
    return replace(state, cache=replace(state.cache, keys=(), values=()))
