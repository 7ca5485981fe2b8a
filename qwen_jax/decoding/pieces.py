"""Pieces of prompts, how several of them share one call, and the programs that compute them.

A call computes rows of T tokens. A piece takes as many rows as it needs, one after another, so a
batch of short prompts is one call, and so is a part of a long one.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.decoding.flat_params import Program, Weights
from qwen_jax.decoding.logits import SamplingArrays, every_id
from qwen_jax.decoding.state import State
from qwen_jax.nn.fused import fused
from qwen_jax.nn.lora import select_adapters


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
def piece_program(finish: Callable[..., tuple[State, Any]]) -> Program:
    """A program of (weights, state, packed, table, ...) that computes pieces, and then finishes.

    table [C blocks]: the pages of each row's text, where slots share them. finish(weights, state,
    x, packed, ...) -> the state and what is wanted of hidden states x [C T D].
    """

    @functools.wraps(finish)
    def whole(
        weights: Weights, state: State, packed: Packed, table: Array | None, *more: Any
    ) -> tuple[State, Any]:
        offsets, owner = packed.offsets(), packed.owner
        positions = packed.starts[owner][:, None] + offsets
        tile = packed.tokens.shape[1]
        count = jnp.clip(packed.lengths[owner] - offsets[:, 0], 0, tile)
        ends = jnp.where(count > 0, positions[:, 0] + count, 0)
        if table is None:
            table = packed.slots[owner][:, None]
        model = fused(select_adapters(weights.model(), packed.adapters[owner]), state.cache.backend)
        cache = state.cache.select(table, ends)
        x, cache = model(packed.tokens, positions, packed.prompt_lengths[owner], cache)
        return finish(weights, replace(state, cache=cache.select(None, None)), x, packed, *more)

    return Program(whole, donate_argnums=1)


def newest(x: Array, packed: Packed) -> Array:
    """Of hidden states [C T D], those [B D] of the pieces' last tokens."""
    last = packed.first * packed.tokens.shape[1] + packed.lengths - 1
    return x.reshape(-1, x.shape[-1]).at[last].get(mode="clip")
