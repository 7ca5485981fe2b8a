"""Choosing the next token: the arithmetic on logits.

`SamplingArrays` holds what the requests in all slots ask for as arrays, so that changing a value
never compiles anything; `History` what those requests have seen and written.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.decoding.sampling import (
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    Sampling,
    stop_sequences,
)
from qwen_jax.nn.sums import row_sum

_ANY, _NEVER = -1, -2  # in a stop sequence: matches every id, matches none
_NOTHING = -3  # where a text has no id yet
_FEW = 256  # of the vocabulary, of which a text's next token mostly is one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingArrays:
    """What the requests in B slots ask for, as arrays of the host or a device; see Sampling."""

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
    def empty(slots: int) -> "SamplingArrays":
        one = SamplingArrays.of(Sampling(), (), 0)
        return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), slots, axis=0), one)

    @staticmethod
    def of(sampling: Sampling, eos_ids: tuple[tuple[int, ...], ...], seed: int) -> "SamplingArrays":
        """One request's settings (numpy, B = 1). eos_ids: where the checkpoint itself stops."""
        s = sampling
        stops = stop_sequences(s, eos_ids)
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
        return SamplingArrays(
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

    def extend(
        self, tokens: Array, owner: Array, real: Array, answered: Array, first: Array, length: Array
    ) -> "History":
        """Add texts that others computed: tokens [C T], of which some are real and some an answer.

        owner [C]: whose a line is. A row's tokens begin at first [B] of all and are length [B].
        """
        vocab, flat = self.prompted.shape[1], tokens.reshape(-1)
        only = lambda wanted: jnp.where(real & wanted, tokens, vocab)
        place = length[:, None] + jnp.arange(-MAX_STOP_LENGTH, 0)  # of the last ones, among them
        new = flat.at[first[:, None] + place].get(mode="clip")
        before = jnp.clip(place + MAX_STOP_LENGTH, 0, MAX_STOP_LENGTH - 1)
        old = jnp.take_along_axis(self.recent, before, axis=1)
        added = jnp.zeros_like(self.generated).at[owner].add(jnp.sum(real & answered, axis=1))
        return History(
            prompted=self.prompted.at[owner[:, None], only(~answered)].set(True, mode="drop"),
            counts=self.counts.at[owner[:, None], only(answered)].add(1, mode="drop"),
            recent=jnp.where(place >= 0, new, old),
            generated=self.generated + added,
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


def logprobs_of(ids: Array, logits: Array) -> Array:
    """Logarithms of the probabilities of ids [B K] -> [B K], of logits [B V]."""
    highest = jnp.max(logits, axis=-1, keepdims=True)
    total = row_sum(jnp.exp(logits - highest))[:, None]
    return jnp.take_along_axis(logits, ids, axis=1) - highest - jnp.log(total)


def softmax(logits: Array) -> Array:
    """Probabilities [B V], of logits [B V]."""
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return weights / row_sum(weights)[:, None]


def every_id(vocab: int) -> np.ndarray:
    """A mask [1 W] that allows all ids: W words of 32 bits, lowest bits first."""
    return np.full((1, -(-vocab // 32)), 0xFFFFFFFF, np.uint32)


def penalize(logits: Array, settings: SamplingArrays, history: History) -> Array:
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


def warp(logits: Array, settings: SamplingArrays) -> Array:
    """Logits [B V] after temperature, top-k, top-p and min-p; dropped ids are -inf."""
    column = lambda x: x[:, None]
    warmth = jnp.maximum(settings.temperature, 1e-30)  # colder would overflow, and 1e-30 is greedy
    logits /= column(jnp.where(settings.temperature > 0, warmth, 1))
    drop = lambda keep: jnp.where(keep, logits, -jnp.inf)

    def top_k() -> Array:
        budget = jnp.where(settings.top_k > 0, settings.top_k, jnp.inf)
        return drop(_within(logits, jnp.ones_like(logits), budget))

    logits = jax.lax.cond(jnp.any(settings.top_k > 0), top_k, lambda: logits)

    def top_p() -> Array:
        budget = jnp.where(settings.top_p < 1, settings.top_p, jnp.inf)
        return drop(_within(logits, softmax(logits), budget))

    logits = jax.lax.cond(jnp.any(settings.top_p < 1), top_p, lambda: logits)
    best = jnp.max(logits, axis=-1, keepdims=True)
    return drop(logits >= best + jnp.log(column(settings.min_p)))


def stopped(settings: SamplingArrays, history: History) -> Array:
    """Whether the newest ids [B] complete a stop sequence, prompt included, past min_tokens."""
    done = jnp.any(_matches(settings.stops, history.recent), axis=-1)
    return done & (history.generated >= settings.min_tokens)


def best(logits: Array, wanted: Array) -> Array:
    """Ids [B MAX_LOGPROBS] of the highest of logits [B V], best first; zeros unless wanted []."""
    count = min(MAX_LOGPROBS, logits.shape[1])
    nothing = jnp.zeros((logits.shape[0], MAX_LOGPROBS), jnp.int32)
    find = lambda: nothing.at[:, :count].set(jax.lax.top_k(logits, count)[1])
    return jax.lax.cond(wanted, find, lambda: nothing)


def _matches(stops: Array, recent: Array) -> Array:
    """stops [B W L], recent [B L] -> [B W]: does the text end with the sequence?"""
    return jnp.all((stops == recent[:, None]) | (stops == _ANY), axis=-1)


def _within(logits: Array, weights: Array, budget: Array) -> Array:
    """Keep an id while what weighs above it stays below the budget [B]. All [B V].

    With weight 1 this is top-k, with probabilities top-p; ids of equal logits go together.
    """
    find = jax.lax.platform_dependent
    return logits >= find(logits, weights, budget, cpu=_lowest_of_few, default=_lowest)[:, None]


def _lowest(logits: Array, weights: Array, budget: Array) -> Array:
    """The lowest value [B] to keep, bit by bit: 32 sums; sorting 150,000 logits takes longer."""
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    ordered = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))  # as floats compare

    def halve(step: Array, lowest: Array) -> Array:  # the least value with less above it
        half = jnp.uint32(1) << (31 - step).astype(jnp.uint32)
        above = row_sum(jnp.where(ordered > (lowest + half - 1)[:, None], weights, 0))
        return jnp.where(above < budget, lowest, lowest + half)

    lowest = jax.lax.fori_loop(0, 32, halve, jnp.zeros(logits.shape[0], jnp.uint32))
    lowest = jnp.maximum(lowest, jnp.uint32(0x007FFFFF))  # of -inf
    bits = jnp.where(lowest >> 31 == 1, lowest ^ jnp.uint32(1 << 31), ~lowest)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _lowest_of_few(logits: Array, weights: Array, budget: Array) -> Array:
    """The same, a fifth of the time on a CPU where it is among the highest few, as it mostly is."""
    values, ids = jax.lax.top_k(logits, min(_FEW, logits.shape[1]))
    own = jnp.take_along_axis(weights, ids, axis=1)
    upto = jnp.cumsum(own, axis=1)
    few = jnp.min(jnp.where(upto - own < budget[:, None], values, jnp.inf), axis=1)
    among = upto[:, -1] >= budget
    every = lambda: jnp.where(among, few, _lowest(logits, weights, budget))
    return jax.lax.cond(jnp.all(among), lambda: few, every)
