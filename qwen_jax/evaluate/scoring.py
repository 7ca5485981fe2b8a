"""Log-likelihoods of given texts, for many texts at once and for long ones.

    likelihoods(params, [Text(context, continuation)])    # of each continuation, and is it greedy
    choices(params, prompts, ids)                         # of some ids as the next token

The hidden states whose scores are wanted are gathered before the head, which takes them piece by
piece: a row of 32k tokens needs no [T V]. What texts begin with together is computed once. A
batch always has the same number of rows, and a row's sizes are its own, so a result depends
neither on the texts beside it nor on their order.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from qwen_jax.decoding.decode import bucket
from qwen_jax.decoding.flat_params import Program, Weights, flatten
from qwen_jax.decoding.state import gather_logits, replicated
from qwen_jax.nn import sharding
from qwen_jax.nn.kv_cache import NoCache, attend_alone
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.projected import Projected

BATCH = 8  # rows of a call
PIECE = 512  # hidden states that meet the head at once
_LEAST_SHARED = 64  # tokens, below which a beginning is not worth a call of its own

Progress = Callable[[int], None]  # told the number of texts that are done


@dataclass(frozen=True)
class Text:
    """Token ids whose likelihood is wanted, `continuation`, after others.

    prefix: how many of the context's first ids other texts begin with as well.
    """

    context: Sequence[int]
    continuation: Sequence[int]
    prefix: int = 0

    @property
    def ids(self) -> list[int]:
        return [*self.context, *self.continuation]


@dataclass(frozen=True)
class Likelihood:
    """Natural log probabilities of a continuation's tokens."""

    logprobs: np.ndarray  # [T] float32
    greedy: bool  # each is the likeliest token at its place

    @property
    def total(self) -> float:
        return float(self.logprobs.sum(dtype=np.float64))


def likelihoods(
    params: Qwen | Weights,
    texts: Sequence[Text],
    batch: int = BATCH,
    progress: Progress = lambda done: None,
) -> list[Likelihood]:
    """Of each text's continuation, which must not be empty; contexts neither."""
    for text in texts:
        if not text.context or not text.continuation:
            raise ValueError("a text needs at least one id before those whose likelihood is wanted")
    rows = [
        _Row(
            text.ids[:-1],
            range(len(text.context) - 1, len(text.ids) - 1),
            [[id] for id in text.continuation],
            text.prefix,
        )
        for text in texts
    ]
    return [
        Likelihood(scores[:, 0], bool((best == np.asarray(list(text.continuation))).all()))
        for text, (scores, best) in zip(texts, _run(params, rows, batch, progress), strict=True)
    ]


def choices(
    params: Qwen | Weights,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[int],
    prefixes: Sequence[int] | None = None,
    batch: int = BATCH,
    progress: Progress = lambda done: None,
) -> np.ndarray:
    """Log probabilities of `ids` after each prompt: float32 [prompts ids].

    prefixes: for each prompt, how many of its first ids others begin with as well.
    """
    prefixes = [0] * len(prompts) if prefixes is None else prefixes
    rows = [
        _Row(list(prompt), range(len(prompt) - 1, len(prompt)), [list(ids)], prefix)
        for prompt, prefix in zip(prompts, prefixes, strict=True)
    ]
    found = [scores[0] for scores, _ in _run(params, rows, batch, progress)]
    return np.stack(found) if found else np.zeros((0, len(ids)), np.float32)


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    places: range  # whose next token is wanted
    targets: list[list[int]]  # for each place, the ids to score
    prefix: int

    @property
    def head(self) -> tuple[int, ...]:
        """The beginning that is worth keeping; no place lies in it."""
        count = min(self.prefix, self.places.start)
        return tuple(self.ids[:count]) if count >= _LEAST_SHARED else ()


def _run(
    params: Qwen | Weights, rows: Sequence[_Row], batch: int, progress: Progress
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each row, scores [places targets] and the likeliest ids [places]."""
    if batch < 1 or batch & (batch - 1):
        raise ValueError(f"got a batch of {batch} rows, wanted a power of two")
    weights = flatten(params)
    kinds: dict[tuple[tuple[int, ...], int], dict[tuple[int, int], list[int]]] = {}
    for index, row in enumerate(rows):
        kind = row.head, _alpha(weights, len(row.ids))
        sizes = bucket(len(row.ids) - len(row.head)), _power(len(row.places))
        kinds.setdefault(kind, defaultdict(list))[sizes].append(index)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for (head, _), by_size in kinds.items():
        one = rows[next(iter(by_size.values()))[0]]
        known = _record(weights, head, len(one.ids)) if head else None
        for (size, places), members in by_size.items():
            fitting = None if known is None else known.fit(_length(len(head) + size))
            for at in range(0, len(members), batch):
                part = members[at : at + batch]
                arrays = _pad([rows[index] for index in part], len(head), size, places, batch)
                results = jax.device_get(_score(weights, *arrays, fitting))
                found |= {i: _cut(rows[i], *(x[n] for x in results)) for n, i in enumerate(part)}
                progress(len(found))
    return [found[index] for index in range(len(rows))]


def _alpha(weights: Weights, length: int) -> int:
    """Keys of texts are the same where this is: it fixes dynamic NTK's alpha."""
    trained = weights.structure.config.ntk_length
    return 0 if trained is None else ((length - 1) // trained).bit_length()


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _length(length: int) -> int:
    """One of few lengths, at most an eighth above what is needed."""
    unit = max(64, bucket(length) // 8)
    return -(-length // unit) * unit


def _pad(
    rows: Sequence[_Row], start: int, size: int, places: int, batch: int
) -> tuple[np.ndarray, ...]:
    """Tokens from `start` on [B T], lengths [B], places [B P] in them, targets [B P C]."""
    width = len(rows[0].targets[0])
    tokens, lengths = np.zeros((batch, size), np.int32), np.ones(batch, np.int32)
    at, targets = np.zeros((batch, places), np.int32), np.zeros((batch, places, width), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row.ids) - start] = row.ids[start:]
        lengths[index] = len(row.ids)
        at[index, : len(row.places)] = np.asarray(row.places) - start
        targets[index, : len(row.places)] = row.targets
    return tokens, lengths, at, targets


def _cut(row: _Row, scores: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scores[: len(row.places)], best[: len(row.places)]


def _split(tokens: Array, mesh: Mesh | None) -> Array:
    """Rows [B T] over the devices that share out a batch."""
    if mesh is None:
        return tokens
    place = NamedSharding(mesh, sharding.spec(mesh, ("slot", None), tokens.shape))
    return jax.lax.with_sharding_constraint(tokens, place)


@Program
def _score(
    weights: Weights,
    tokens: Array,
    lengths: Array,
    at: Array,
    targets: Array,
    known: "Known | None",
) -> tuple[Array, Array]:
    """Log probabilities of targets [B P C] after the tokens at places [B P], and the likeliest."""
    model, mesh = weights.model(), weights.structure.mesh
    start = jnp.int32(0) if known is None else known.start
    tokens = _split(tokens, mesh)
    positions = start + jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    x, _ = model(tokens, positions, lengths, NoCache(mesh) if known is None else known)
    wanted = jnp.take_along_axis(x, at[:, :, None], axis=1).reshape(-1, x.shape[-1])
    ids = targets.reshape(wanted.shape[0], -1)

    def piece(part: tuple[Array, Array]) -> tuple[Array, Array]:
        logprobs = jax.nn.log_softmax(gather_logits(model.logits(part[0]), mesh), axis=-1)
        best = jnp.argmax(logprobs, axis=-1).astype(jnp.int32)
        return jnp.take_along_axis(logprobs, part[1], axis=1), best

    pieces = -(-wanted.shape[0] // PIECE)
    if pieces == 1:
        scores, best = piece((wanted, ids))
    else:  # both are powers of two
        cut = lambda x: x.reshape(pieces, -1, x.shape[-1])
        scores, best = jax.lax.map(piece, (cut(wanted), cut(ids)))
    return replicated((scores.reshape(targets.shape), best.reshape(at.shape)), mesh)


# --- what texts begin with together ------------------------------------------------------------
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recorder:
    """Attends over the tokens of this call alone, and keeps their keys and values."""

    mesh: Mesh | None = field(metadata={"static": True})
    keys: Array  # [L B T K H], as `values`
    values: Array

    def attend(self, layer: int | Array, asked: Projected) -> tuple[Array, "Recorder"]:
        q, k, v = asked.split()
        y = attend_alone(q, k, v, asked.where.positions, self.mesh)
        keys, values = self.keys.at[layer].set(k), self.values.at[layer].set(v)
        return y, Recorder(self.mesh, keys, values)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Known:
    """Keys and values that all rows of a call begin with, up to position `start`."""

    keys: Array  # [L 1 S K H], as `values`
    values: Array
    start: Array  # [] int32
    mesh: Mesh | None = field(metadata={"static": True})

    def fit(self, length: int) -> "Known":
        """The same with space for `length` tokens in all."""

        def fit(x: Array) -> Array:
            missing = max(0, length - x.shape[2])
            return jnp.pad(x[:, :, :length], ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))

        return replace(self, keys=fit(self.keys), values=fit(self.values))

    def attend(self, layer: int | Array, asked: Projected) -> tuple[Array, "Known"]:
        """Over what is known and, behind it, the tokens of this call."""

        def whole(known: Array, new: Array) -> Array:
            rows = jnp.broadcast_to(known, (new.shape[0], *known.shape[1:]))
            return jax.lax.dynamic_update_slice_in_dim(rows, new, self.start, axis=1)

        q, k, v = asked.split()
        k, v = whole(self.keys[layer], k), whole(self.values[layer], v)
        return attend_alone(q, k, v, asked.where.positions, self.mesh), self


def _record(weights: Weights, head: Sequence[int], text_length: int) -> Known:
    """Compute what texts of this length begin with."""
    tokens = np.zeros((1, bucket(len(head))), np.int32)
    tokens[0, : len(head)] = head
    keys, values = _keys_and_values(weights, tokens, np.asarray([text_length], np.int32))
    return Known(keys, values, jnp.int32(len(head)), weights.structure.mesh)


@Program
def _keys_and_values(weights: Weights, tokens: Array, lengths: Array) -> tuple[Array, Array]:
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    config = weights.structure.config
    shape = config.layers, *tokens.shape, config.kv_heads, config.head_dim
    nothing = jnp.zeros(shape, weights.dtype)
    before = Recorder(weights.structure.mesh, nothing, nothing)
    _, seen = weights.model()(tokens, positions, lengths, before)
    return seen.keys, seen.values
