"""Penalties, filters and draws against transformers' processors and naive NumPy."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jax import Array
from safetensors.numpy import load_file

from qwen_jax.decoding.choice import pick, sample
from qwen_jax.decoding.logits import (
    History,
    SamplingArrays,
    _lowest,
    _lowest_of_few,
    penalize,
    stopped,
    warp,
)
from qwen_jax.decoding.sampling import Sampling
from tests.conftest import GOLDEN
from tests.qwen_jax.networks import settings

FOLDER = GOLDEN / "sampling"
CASES = json.loads((FOLDER / "cases.json").read_text())
STOP_WORDS = json.loads((FOLDER / "stop_words.json").read_text())
jitted: Any = [jax.jit(f) for f in (penalize, warp, pick, sample, stopped, History.append)]
penalize, warp, pick, sample, stopped, append = jitted
quick = hypothesis_settings(max_examples=100, deadline=None)


def stack(
    *samplings: Sampling, seeds: Sequence[int] | None = None, eos: tuple[Any, ...] = ()
) -> SamplingArrays:
    """Settings of several requests."""
    seeds = range(len(samplings)) if seeds is None else seeds
    one = [settings(sampling, seed, eos) for sampling, seed in zip(samplings, seeds, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *one)


def history(vocab: int, *rows: tuple[Any, ...]) -> History:
    """rows: (prompt, answer) of each request."""
    made = History.empty(len(rows), vocab)
    prompted = made.prompted
    for row, (prompt, _) in enumerate(rows):
        prompted = prompted.at[row, np.array(prompt, np.int32)].set(True)
    made, answers = dataclasses.replace(made, prompted=prompted), [answer for _, answer in rows]
    for place in range(max(map(len, answers))):
        active = np.array([place < len(answer) for answer in answers])
        tokens = np.array([answer[place] if place < len(answer) else 0 for answer in answers])
        made = append(made, jnp.asarray(tokens, jnp.int32), jnp.asarray(active))
    return made


def softmax(logits: Array | np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


# --- the original ------------------------------------------------------------------------------
@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_probabilities_of_transformers(number: int) -> None:
    golden = load_file(FOLDER / "golden.safetensors")
    logits, sampling = jnp.asarray(golden["logits"]), stack(*[Sampling(**CASES[number])] * 4)
    seen = history(logits.shape[1], *[(context, []) for context in golden["context"]])
    got = softmax(warp(penalize(logits, sampling, seen), sampling))
    np.testing.assert_allclose(got, golden[f"probs_{number}"], atol=1e-6)


@pytest.mark.parametrize("row", STOP_WORDS["rows"], ids=lambda row: str(row["context"]))
def test_stop_words_of_the_original(row: dict[str, Any]) -> None:
    sampling = stack(Sampling(stop_ids=tuple(map(tuple, STOP_WORDS["stop_words_ids"]))))
    assert bool(stopped(sampling, history(200, ([], row["context"])))[0]) is row["stops"]


# --- filters -----------------------------------------------------------------------------------
VOCAB = 12
some_logits = st.lists(
    st.one_of(
        st.integers(-6, 6).map(lambda n: n / 2), st.just(-np.inf), st.floats(-9, 9, width=16)
    ),
    min_size=VOCAB,
    max_size=VOCAB,
).filter(lambda row: max(row) > -np.inf)
filters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
        "top_k": st.integers(0, VOCAB + 2),
        "top_p": st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.01, 1)),
    }
)


def naive_warp(logits: Array | np.ndarray, sampling: Sampling) -> np.ndarray:
    """Temperature, then what top-k, top-p and min-p keep; ids of equal logits stay together."""
    x = np.asarray(logits, np.float64) / sampling.temperature
    if sampling.top_k:
        x = np.where([np.sum(x > one) < sampling.top_k for one in x], x, -np.inf)
    if sampling.top_p < 1:
        p = softmax(x)
        x = np.where([p[x > one].sum() < sampling.top_p for one in x], x, -np.inf)
    keep = softmax(x) >= sampling.min_p * softmax(x).max()
    return np.where(keep, x, -np.inf)


def on_the_edge(logits: np.ndarray, sampling: Sampling) -> bool:
    """Whether float32 may decide otherwise than float64."""
    near = lambda change: naive_warp(np.asarray(logits) + 0.0, change)
    nudge = [1 - 1e-5, 1 + 1e-5]
    tries = [
        near(
            Sampling(
                sampling.temperature,
                sampling.top_k,
                min(1, sampling.top_p * p),
                min(1, sampling.min_p * m),
            )
        )
        for p in (nudge if sampling.top_p < 1 else [1])
        for m in (nudge if sampling.min_p else [1])
    ]
    return any(not np.array_equal(tried, tries[0]) for tried in tries)


@quick
@given(st.lists(st.tuples(some_logits, filters), min_size=3, max_size=3))
def test_filters(rows: list[tuple[list[Any], dict[str, Any]]]) -> None:
    """Rows of one batch ask for different things."""
    samplings = [Sampling(**sampling) for _, sampling in rows]
    logits = np.array([row for row, _ in rows], np.float32) + 0.0  # no -0.0
    got = np.asarray(warp(jnp.asarray(logits), stack(*samplings)))
    for row, one, sampling in zip(got, logits, samplings, strict=True):
        if not on_the_edge(one, sampling):
            np.testing.assert_allclose(row, naive_warp(one, sampling), rtol=1e-6)


def test_a_cut_among_few_is_the_cut_among_all() -> None:
    """Rows whose cut is among the highest few, beside rows that need the whole vocabulary."""
    chance, vocab = np.random.default_rng(0), 1000
    logits = jnp.asarray(chance.normal(size=(4, vocab)) * [[8], [8], [0.1], [0.1]], jnp.float32)
    counts, ones = jnp.asarray([3, 300, 900, 1]), jnp.ones_like(logits)
    shares = jnp.asarray([0.5, 0.9, 0.5, 0.9])
    for weights, budget in ((ones, counts), (jnp.asarray(softmax(logits), jnp.float32), shares)):
        wanted = _lowest(logits, weights, budget)
        np.testing.assert_array_equal(_lowest_of_few(logits, weights, budget), wanted)
        for row in range(len(logits)):
            one = (x[row : row + 1] for x in (logits, weights, budget))
            assert _lowest_of_few(*one)[0] == wanted[row]


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 2e-38, 1e-44])
def test_tiny_temperatures_take_the_best(temperature: float, top_p: float) -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 30, (8, VOCAB)), jnp.float32)
    samplings = stack(*[Sampling(temperature=temperature, top_p=top_p)] * 8)
    got = sample(logits, samplings, History.empty(8, VOCAB), jnp.arange(8))
    np.testing.assert_array_equal(got, logits.argmax(1))


# --- penalties, biases, min_tokens -------------------------------------------------------------
@st.composite
def requests(draw: st.DrawFn) -> tuple[Any, ...]:
    token = st.integers(0, VOCAB - 1)
    sampling = Sampling(
        repetition_penalty=draw(st.sampled_from([1.0, 0.5, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, 0.75, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.25, -1.0])),
        logit_bias=draw(st.dictionaries(token, st.integers(-8, 8), max_size=4)),
        min_tokens=draw(st.integers(0, 6)),
        stop_ids=tuple(
            draw(st.lists(st.lists(token, min_size=1, max_size=3).map(tuple), max_size=4))
        ),
    )
    prompt, answer = (draw(st.lists(token, max_size=5)) for _ in range(2))
    return draw(some_logits), sampling, prompt, answer


def naive_penalize(
    logits: list[float], sampling: Sampling, prompt: list[Any], answer: list[Any]
) -> np.ndarray:
    x = np.array(logits, np.float64)
    for token in {*prompt, *answer}:
        x[token] *= sampling.repetition_penalty if x[token] < 0 else 1 / sampling.repetition_penalty
    for token in set(answer):
        x[token] -= sampling.presence_penalty + sampling.frequency_penalty * answer.count(token)
    for token, bias in sampling.logit_bias.items():
        x[token] += bias
    if len(answer) < sampling.min_tokens:
        for *begin, end in sampling.stop_ids:
            if answer[len(answer) - len(begin) :] == begin:
                x[end] = -np.inf
    return x


@quick
@given(st.lists(requests(), min_size=3, max_size=3))
def test_penalties(rows: list[tuple[list[Any], Sampling, list[Any], list[Any]]]) -> None:
    logits, samplings, prompts, answers = zip(*rows, strict=True)
    # stop sequences that reach into the prompt are tried in test_decode
    seen = history(VOCAB, *zip(prompts, answers, strict=True))
    got = np.asarray(penalize(jnp.asarray(logits, jnp.float32), stack(*samplings), seen))
    for row, *request in zip(got, logits, samplings, prompts, answers, strict=True):
        np.testing.assert_allclose(row, naive_penalize(*request), rtol=1e-5, atol=1e-5)


@quick
@given(requests())
def test_stopped(request: tuple[Any, ...]) -> None:
    _, sampling, _, answer = request
    ends = any(
        tuple(answer[-len(ids) :]) == ids for ids in sampling.stop_ids if len(ids) <= len(answer)
    )
    got = stopped(stack(sampling), history(VOCAB, ([], answer)))
    assert bool(got[0]) is (ends and len(answer) >= sampling.min_tokens)


def test_the_checkpoints_own_stops() -> None:
    seen = history(VOCAB, ([], [7]), ([], [7]), ([], [8]))
    samplings = Sampling(), Sampling(ignore_eos=True), Sampling(ignore_eos=True, stop_ids=((8,),))
    got = stopped(stack(*samplings, eos=((7,),)), seen)
    assert got.tolist() == [True, False, True]


# --- draws -------------------------------------------------------------------------------------
LOGITS = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01]))
MANY = 4000


def draws(
    sampling: Sampling, seeds: list[int] | np.ndarray, positions: list[int] | np.ndarray
) -> np.ndarray:
    rows = len(seeds)
    logits = jnp.broadcast_to(LOGITS, (rows, 6))
    one = stack(sampling)
    key = np.concatenate([settings(sampling, int(seed)).key for seed in seeds])
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, rows, axis=0), one)
    many = dataclasses.replace(many, key=jnp.asarray(key))
    return np.asarray(sample(logits, many, History.empty(rows, 6), jnp.asarray(positions)))


@pytest.mark.parametrize("vary", ["seeds", "high seeds", "positions"])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=1.5, top_k=4), Sampling(temperature=0.7, top_p=0.8)],
)
def test_draws_follow_the_distribution(vary: str, sampling: Sampling) -> None:
    """Over requests, whose seeds may differ in any of 64 bits, and along one answer."""
    many, one = np.arange(MANY), np.full(MANY, 5)
    seeds = {"seeds": many, "high seeds": many << 32, "positions": one}[vary]
    found = np.bincount(draws(sampling, seeds, many if vary == "positions" else one), minlength=6)
    wanted = softmax(naive_warp(LOGITS, sampling)) * MANY
    assert not found[wanted == 0].any()
    chi_square = np.sum((found - wanted)[wanted > 0] ** 2 / wanted[wanted > 0])
    assert chi_square < 28  # five degrees of freedom: one in 27,000 by chance, and seeds are fixed


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    many = draws(Sampling(), np.arange(MANY), np.arange(MANY) % 7)
    for row in [0, 3, MANY - 1]:
        assert draws(Sampling(), [row], [row % 7]) == many[row]


def test_greedy_ignores_seeds_beside_rows_that_draw() -> None:
    samplings = [Sampling(temperature=0), Sampling()] * 50
    rows = stack(*samplings)
    logits = jnp.broadcast_to(LOGITS, (100, 6))
    got = np.asarray(sample(logits, rows, History.empty(100, 6), jnp.arange(100)))
    assert not got[::2].any()
    assert got[1::2].any()


some_weights = st.lists(st.sampled_from([0.0, 1e-7, 0.3, 1.0]), min_size=VOCAB, max_size=VOCAB)
points = st.sampled_from([0.0, 1 - 2**-23]) | st.floats(0, 1 - 2**-23, width=32)


@quick
@given(some_weights.filter(any), points)
def test_a_pick_has_weight_and_lies_at_the_point(weights: list[float], point: float) -> None:
    place, total = int(pick(jnp.array([weights]), jnp.array([point]))[0]), sum(weights)
    slack = 1e-6 * total
    assert weights[place] > 0
    assert sum(weights[:place]) - slack <= point * total <= sum(weights[: place + 1]) + slack
