"""Choosing the next token: what a user may ask for, and the arithmetic on logits.

`Sampling` is one request's wish, in plain Python. `Settings` holds the wishes of all slots as
arrays, so that changing a value never compiles anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

MAX_BIASES = 300  # ids in logit_bias, OpenAI's limit
MAX_STOPS = 16  # stop sequences of a request, the checkpoint's own included
MAX_STOP_LENGTH = 8  # ids in one stop sequence
MAX_LOGPROBS = 20
_ANY, _NEVER = -1, -2  # in a stop sequence: matches every id, matches none
_NOTHING = -3  # where a text has no id yet


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The default samples from the model's own distribution.

    Applied in transformers' order: repetition penalty, presence and frequency penalty, logit
    bias, min_tokens, temperature, top_k, top_p, min_p. Values that make no sense raise ValueError.
    """

    temperature: float = 1.0  # 0 takes the most likely token
    top_k: int = 0  # keep the k most likely tokens; 0: all
    top_p: float = 1.0  # keep the fewest tokens that hold this much probability
    min_p: float = 0.0  # keep tokens at least this fraction as likely as the best
    repetition_penalty: float = 1.0  # weakens ids seen in the prompt or the answer
    presence_penalty: float = 0.0  # subtracted from ids in the answer
    frequency_penalty: float = 0.0  # subtracted once per occurrence in the answer
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0  # no stop before so many new tokens
    stop: tuple[str, ...] = ()  # texts that end the answer and are cut from it
    stop_ids: tuple[tuple[int, ...], ...] = ()  # sequences of ids that end it, and stay
    ignore_eos: bool = False  # do not stop at the ids the checkpoint itself stops at
    logprobs: int | None = None  # log probabilities of this many best ids beside the chosen one

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}, expected a {'whole ' if whole else ''}number "
            f"from {least} to {most}"
            for name, whole, least, most in _RANGES
            if not _is_number(getattr(self, name), whole, least, most)
        ]
        if self.logprobs is not None and not _is_number(self.logprobs, True, 0, MAX_LOGPROBS):
            problems.append(f"logprobs is {self.logprobs!r}, expected None or 0 to {MAX_LOGPROBS}")
        if not isinstance(self.ignore_eos, bool):
            problems.append(f"ignore_eos is {self.ignore_eos!r}, expected True or False")
        biases = self.logit_bias if isinstance(self.logit_bias, Mapping) else {}
        if biases is not self.logit_bias:
            problems.append(f"logit_bias is {self.logit_bias!r}, expected a mapping of ids")
        if len(biases) > MAX_BIASES:
            problems.append(f"logit_bias has {len(biases)} ids, at most {MAX_BIASES} fit")
        for token, bias in biases.items():
            if not _is_number(token, True, 0, 2**31 - 1) or not _is_number(bias, False, -1e4, 1e4):
                problems.append(f"logit_bias has {token!r}: {bias!r}, expected an id and a number")
        if not _is_list(self.stop) or not all(isinstance(s, str) and s for s in self.stop):
            problems.append(f"stop is {self.stop!r}, expected a tuple of non-empty strings")
        sequences = self.stop_ids if _is_list(self.stop_ids) else ()
        if sequences is not self.stop_ids:
            problems.append(f"stop_ids is {self.stop_ids!r}, expected a tuple of sequences of ids")
        if len(sequences) > MAX_STOPS:
            problems.append(f"stop_ids has {len(sequences)} sequences, at most {MAX_STOPS} fit")
        for ids in sequences:
            good = _is_list(ids) and all(_is_number(i, True, 0, 2**31 - 1) for i in ids)
            if not good or not 0 < len(ids) <= MAX_STOP_LENGTH:
                problems.append(
                    f"stop_ids has {ids!r}, expected a sequence of 1 to {MAX_STOP_LENGTH} ids"
                )
        if problems:
            raise ValueError("Sampling: " + "; ".join(problems))


_RANGES: tuple[tuple[str, bool, float, float], ...] = (
    ("temperature", False, 0, 100),
    ("top_k", True, 0, 2**31 - 1),
    ("top_p", False, 1e-9, 1),
    ("min_p", False, 0, 1),
    ("repetition_penalty", False, 1e-3, 1e3),
    ("presence_penalty", False, -100, 100),
    ("frequency_penalty", False, -100, 100),
    ("min_tokens", True, 0, 2**31 - 1),
)


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _is_number(value: Any, whole: bool, least: float, most: float) -> bool:
    kind = Integral if whole else Real
    return isinstance(value, kind) and not isinstance(value, bool) and least <= float(value) <= most


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Settings:
    """The wishes of B slots as arrays, the host's or a device's; see Sampling for their meaning."""

    temperature: Any  # [B] float32, as all that have no other type
    top_k: Any  # [B] int32
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    presence_penalty: Any
    frequency_penalty: Any
    bias_ids: Any  # [B MAX_BIASES] int32, unused places past the vocabulary
    biases: Any  # [B MAX_BIASES]
    min_tokens: Any  # [B] int32
    stops: Any  # [B MAX_STOPS MAX_STOP_LENGTH] int32, filled from the right
    logprobs: Any  # [B] bool
    key: Any  # [B 2] uint32: the request's random key

    @staticmethod
    def empty(slots: int) -> "Settings":
        one = Settings.of(Sampling(), (), 0)
        return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), slots, axis=0), one)

    @staticmethod
    def of(sampling: Sampling, eos_ids: tuple[tuple[int, ...], ...], seed: int) -> "Settings":
        """One request's settings (numpy, B = 1). eos_ids: where the checkpoint itself stops."""
        s = sampling
        wanted = (*s.stop_ids, *(() if s.ignore_eos else eos_ids))
        stops = list(dict.fromkeys(map(tuple, wanted)))
        if len(stops) > MAX_STOPS:
            raise ValueError(f"{len(stops)} stop sequences, at most {MAX_STOPS} fit")
        table = np.full((1, MAX_STOPS, MAX_STOP_LENGTH), _NEVER, np.int32)
        for row, ids in enumerate(stops):
            table[0, row] = [_ANY] * (MAX_STOP_LENGTH - len(ids)) + list(ids)
        bias_ids = np.full((1, MAX_BIASES), 2**31 - 1, np.int32)
        biases = np.zeros((1, MAX_BIASES), np.float32)
        bias_ids[0, : len(s.logit_bias)] = list(s.logit_bias)
        biases[0, : len(s.logit_bias)] = list(s.logit_bias.values())
        number = lambda x: np.asarray([x], np.float32)
        return Settings(
            temperature=number(s.temperature),
            top_k=np.asarray([s.top_k], np.int32),
            top_p=number(s.top_p),
            min_p=number(s.min_p),
            repetition_penalty=number(s.repetition_penalty),
            presence_penalty=number(s.presence_penalty),
            frequency_penalty=number(s.frequency_penalty),
            bias_ids=bias_ids,
            biases=biases,
            min_tokens=np.asarray([s.min_tokens], np.int32),
            stops=table,
            logprobs=np.asarray([s.logprobs is not None]),
            key=np.asarray([[seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF]], np.uint32),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class History:
    """What a request has seen and written, as far as choosing its next token needs it."""

    prompted: Array  # [B V] bool: ids of the prompt
    counts: Array  # [B V] int32: how often each id is in the answer
    recent: Array  # [B MAX_STOP_LENGTH] int32: the last ids, prompt included, newest last
    generated: Array  # [B] int32: tokens in the answer

    @staticmethod
    def empty(slots: int, vocab: int) -> "History":
        return History(
            prompted=jnp.zeros((slots, vocab), bool),
            counts=jnp.zeros((slots, vocab), jnp.int32),
            recent=jnp.full((slots, MAX_STOP_LENGTH), _NOTHING, jnp.int32),
            generated=jnp.zeros(slots, jnp.int32),
        )

    def append(self, tokens: Array, active: Array) -> "History":
        """Add tokens [B] to the answers of the rows that are active [B]."""
        rows = jnp.arange(tokens.shape[0])
        recent = jnp.concatenate([self.recent[:, 1:], tokens[:, None]], axis=1)
        return History(
            prompted=self.prompted,
            counts=self.counts.at[rows, tokens].add(active.astype(jnp.int32)),
            recent=jnp.where(active[:, None], recent, self.recent),
            generated=self.generated + active,
        )


def sample(logits: Array, settings: Settings, history: History, positions: Array) -> Array:
    """Logits [B V] float32 -> tokens [B] int32. positions [B]: where each token will stand.

    Random numbers come from the request's key and the position alone, so neither neighbours
    nor the slot nor the batch size change what a request draws.
    """
    logits = penalize(logits, settings, history)
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw():
        keys = jax.random.wrap_key_data(settings.key)
        keys = jax.vmap(jax.random.fold_in)(keys, positions)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        drawn = jnp.argmax(warp(logits, settings) + noise, axis=-1).astype(jnp.int32)
        return jnp.where(settings.temperature > 0, drawn, best)

    return jax.lax.cond(jnp.any(settings.temperature > 0), draw, lambda: best)


def penalize(logits: Array, settings: Settings, history: History) -> Array:
    """Logits [B V] after penalties, biases and min_tokens: what greedy decoding maximises."""
    column = lambda x: x[:, None]
    answered = history.counts > 0
    penalty = column(settings.repetition_penalty)
    weaker = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(history.prompted | answered, weaker, logits)
    logits -= column(settings.presence_penalty) * answered
    logits -= column(settings.frequency_penalty) * history.counts
    rows = jnp.arange(logits.shape[0])[:, None]
    logits = logits.at[rows, settings.bias_ids].add(settings.biases, mode="drop")
    # too early to stop: forbid every id that would complete a stop sequence
    begun = _matches(settings.stops[:, :, :-1], history.recent[:, 1:])
    early = begun & column(history.generated < settings.min_tokens)
    enders = jnp.where(early, settings.stops[:, :, -1], 2**31 - 1)
    return logits.at[rows, enders].set(-jnp.inf, mode="drop")


def warp(logits: Array, settings: Settings) -> Array:
    """Logits [B V] after temperature, top-k, top-p and min-p; dropped ids are -inf."""
    column = lambda x: x[:, None]
    warmth = jnp.maximum(settings.temperature, 1e-30)  # colder would overflow, and 1e-30 is greedy
    logits /= column(jnp.where(settings.temperature > 0, warmth, 1))
    drop = lambda keep: jnp.where(keep, logits, -jnp.inf)

    def top_k():
        budget = jnp.where(settings.top_k > 0, settings.top_k, jnp.inf)
        return drop(_within(logits, jnp.ones_like(logits), budget))

    logits = jax.lax.cond(jnp.any(settings.top_k > 0), top_k, lambda: logits)

    def top_p():
        budget = jnp.where(settings.top_p < 1, settings.top_p, jnp.inf)
        return drop(_within(logits, jax.nn.softmax(logits, axis=-1), budget))

    logits = jax.lax.cond(jnp.any(settings.top_p < 1), top_p, lambda: logits)
    best = jnp.max(logits, axis=-1, keepdims=True)
    return drop(logits >= best + jnp.log(column(settings.min_p)))


def stopped(settings: Settings, history: History) -> Array:
    """Whether the newest ids [B] complete a stop sequence, prompt included, past min_tokens."""
    done = jnp.any(_matches(settings.stops, history.recent), axis=-1)
    return done & (history.generated >= settings.min_tokens)


def best(logprobs: Array, wanted: Array) -> tuple[Array, Array]:
    """Ids and values [B MAX_LOGPROBS] of the highest of logprobs [B V]; zeros unless wanted []."""
    count = min(MAX_LOGPROBS, logprobs.shape[1])
    pad = lambda x: jnp.pad(x, ((0, 0), (0, MAX_LOGPROBS - count)))

    def find() -> tuple[Array, Array]:
        values, ids = jax.lax.top_k(logprobs, count)
        return pad(ids), pad(values)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(find))
    return jax.lax.cond(wanted, find, lambda: nothing)


def _matches(stops: Array, recent: Array) -> Array:
    """stops [B W L], recent [B L] -> [B W]: does the text end with the sequence?"""
    return jnp.all((stops == recent[:, None]) | (stops == _ANY), axis=-1)


def _within(logits: Array, weights: Array, budget: Array) -> Array:
    """Keep an id while what weighs above it stays below the budget [B]. All [B V].

    With weight 1 this is top-k, with probabilities top-p; ids of equal logits go together. The
    lowest kept value is found bit by bit: 32 sums, where sorting 150,000 logits takes longer.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    ordered = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))  # as floats compare

    def halve(step, lowest):  # the smallest value with less than the budget above it
        half = jnp.uint32(1) << (31 - step).astype(jnp.uint32)
        above = jnp.sum(jnp.where(ordered > (lowest + half - 1)[:, None], weights, 0), axis=-1)
        return jnp.where(above < budget, lowest, lowest + half)

    lowest = jax.lax.fori_loop(0, 32, halve, jnp.zeros(logits.shape[0], jnp.uint32))
    return ordered >= lowest[:, None]
