"""Prefixes shared between slots, prompts scored, answers kept to masks: what servers add."""

from typing import Any

import jax
import numpy as np
import pytest

from qwen_jax.decoding import decode
from qwen_jax.decoding import prefix as prompts
from qwen_jax.decoding.logits import SamplingArrays, every_id
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import State
from qwen_jax.nn.model import Qwen
from tests.conftest import Golden
from tests.qwen_jax.networks import (
    Network,
    answer,
    cache_sizes,
    finish,
    golden_network,
    prefill,
    settings,
)
from tests.reference import reference_logits

SLOTS, LENGTH, CHUNK = 3, 256, 32
GREEDY = settings()


@pytest.fixture(scope="module")
def long(golden: Golden) -> Network:
    return golden_network(golden("v1/longctx"))


def text(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 512, length).tolist()


def go_on(
    params: Qwen,
    state: State,
    slot: int,
    ids: list[int],
    start: int,
    sampling: SamplingArrays,
    new: int = 8,
    **how: Any,
) -> tuple[State, dict[int, list[Any]]]:
    """The rest of a prompt from `start` on, by chunks, and its answer."""
    for at in range(start, len(ids), CHUNK):
        state, output = decode.prefill(
            params,
            state,
            slot,
            ids[at : at + CHUNK],
            start=at,
            prompt_length=len(ids),
            settings=sampling,
            max_new_tokens=new,
            size=CHUNK,
            **how,
        )
    return finish(params, state, {slot: output.tokens[0].tolist()})


# --- sharing -----------------------------------------------------------------------------------
@pytest.mark.parametrize("source", [0, 1])
@pytest.mark.parametrize("shared", [32, 64])
def test_a_shared_prefix_changes_nothing(long: Network, source: int, shared: int) -> None:
    """Not the keys and values, nor what penalties and stop sequences know of the prompt."""
    prefix = text(1, 64)
    first, second = prefix + text(2, 30), prefix[:shared] + text(3, 80 - shared)
    sampling = settings(Sampling(temperature=0.8, repetition_penalty=1.3), seed=5)
    fresh = decode.start(long.params, SLOTS, LENGTH)
    fresh, wanted = go_on(long.params, fresh, 1, second, 0, sampling)

    state = decode.start(long.params, SLOTS, LENGTH)
    state, _ = answer(long.params, state, 1, text(9, 200), new=5)  # leaves a longer text behind
    state, _ = go_on(long.params, state, source, first, 0, GREEDY)
    state = prompts.copy_prefix(long.params, state, source, 1, second[:shared])
    assert int(state.positions[1]) == shared
    assert not bool(state.active[1])
    state, got = go_on(long.params, state, 1, second, shared, sampling)
    assert got == wanted
    for mine, other in zip(jax.tree.leaves(state.cache), jax.tree.leaves(fresh.cache), strict=True):
        np.testing.assert_array_equal(mine[1, :, :80], other[1, :, :80])
    np.testing.assert_array_equal(state.history.prompted[1], fresh.history.prompted[1])


def test_a_stop_sequence_reaches_into_a_shared_prefix(long: Network) -> None:
    ids = text(4, 33)
    state, _ = go_on(long.params, decode.start(long.params, SLOTS, LENGTH), 0, ids, 0, GREEDY)
    (free,) = answer(long.params, state, 2, ids, new=1)[1]
    sampling = settings(Sampling(temperature=0, stop_ids=((*ids[28:], free),)))
    state, _ = go_on(long.params, decode.start(long.params, SLOTS, LENGTH), 0, ids, 0, GREEDY)
    state = prompts.copy_prefix(long.params, state, 0, 1, ids[:32])
    _, got = go_on(long.params, state, 1, ids, 32, sampling)
    assert got[1] == [free]


def test_sharing_leaves_a_neighbour_alone(long: Network) -> None:
    ids = text(1, 70)
    state, wanted = go_on(long.params, decode.start(long.params, SLOTS, LENGTH), 0, ids, 0, GREEDY)
    state, output = prefill(long.params, decode.start(long.params, SLOTS, LENGTH), 0, ids, new=8)
    state = prompts.copy_prefix(long.params, state, 0, 2, ids[:64])
    _, got = finish(long.params, state, {0: output.tokens[0].tolist()})
    assert got[0] == wanted[0]


# --- scoring -----------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [2, 32, 33, 100])
def test_scores_of_a_prompt(long: Network, length: int) -> None:
    """Every token's, given those before it; against the reference, NTK of the whole length."""
    ids = text(length, length)
    state = decode.start(long.params, SLOTS, LENGTH)
    state, _ = prefill(long.params, state, 0, text(8, 50), new=99)  # a neighbour that goes on
    found = []
    for at in range(0, length - 1, CHUNK):
        end = min(length - 1, at + CHUNK)
        state, scores = prompts.score_chunk(
            long.params,
            state,
            1,
            ids[at:end],
            ids[at + 1 : end + 1],
            start=at,
            prompt_length=length,
            size=CHUNK,
        )
        state, _ = decode.step(long.params, state, 1)
        found.append(jax.tree.map(lambda x, n=end - at: np.asarray(x)[:n], scores))
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    logits = reference_logits(long.hf, long.tensors, ids, prompt_length=length)[:-1]
    shifted = logits - logits.max(axis=-1, keepdims=True)
    wanted = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    rows = np.arange(length - 1)
    np.testing.assert_allclose(whole.logprobs, wanted[rows, ids[1:]], atol=2e-4)
    np.testing.assert_allclose(whole.top_logprobs[:, 0], wanted.max(axis=-1), atol=2e-4)
    np.testing.assert_allclose(
        np.take_along_axis(wanted, whole.top_tokens, axis=1), whole.top_logprobs, atol=2e-4
    )
    assert not bool(state.active[1])
    assert bool(state.active[0])


# --- masks -------------------------------------------------------------------------------------
def mask(vocab: int, *ids: int) -> np.ndarray:
    words = np.zeros_like(every_id(vocab))
    for id in ids:
        words[0, id // 32] |= np.uint32(1 << id % 32)
    return words


def test_only_allowed_ids_are_chosen(long: Network) -> None:
    vocab = long.params.config.vocab
    state = decode.start(long.params, SLOTS, LENGTH)
    ids, wanted, got = text(1, 20), [3, 64, vocab - 1, 31, 32], []
    state, output = decode.prefill(
        long.params,
        state,
        1,
        ids,
        start=0,
        prompt_length=20,
        settings=settings(Sampling(temperature=1.0)),
        max_new_tokens=9,
        allowed=mask(vocab, wanted[0]),
    )
    got += output.tokens[0].tolist()
    for id in wanted[1:]:
        rows = np.repeat(every_id(vocab), SLOTS, axis=0)
        rows[1] = mask(vocab, id)[0]
        state, output = decode.step(long.params, state, 1, rows)
        got += output.tokens[1].tolist()
    assert got == wanted


def test_the_best_allowed_id_wins(long: Network) -> None:
    vocab, ids = long.params.config.vocab, text(2, 20)
    sampling = settings(Sampling(temperature=0, logprobs=20))
    state = decode.start(long.params, SLOTS, LENGTH)
    state, free = prefill(long.params, state, 0, ids, sampling, 9)
    third = int(free.top_tokens[0, 0, 2])
    rows = mask(vocab, *free.top_tokens[0, 0, 2:].tolist())
    state, output = decode.prefill(
        long.params,
        state,
        0,
        ids,
        start=0,
        prompt_length=20,
        settings=sampling,
        max_new_tokens=9,
        allowed=rows,
    )
    assert output.tokens[0].tolist() == [third]
    np.testing.assert_array_equal(output.top_tokens, free.top_tokens)  # the model's own view


def test_a_slot_without_any_id_waits(long: Network) -> None:
    """And its neighbours, free or under a mask of all, write what they write without masks."""
    vocab, one, other = long.params.config.vocab, text(1, 20), text(2, 40)
    sampling = settings(Sampling(temperature=0.9, frequency_penalty=0.5), seed=3)

    def begin() -> tuple[State, dict[int, list[Any]]]:
        state, first = prefill(
            long.params, decode.start(long.params, SLOTS, LENGTH), 0, one, sampling, new=6
        )
        state, second = prefill(long.params, state, 2, other, sampling, new=6)
        return state, {0: first.tokens[0].tolist(), 2: second.tokens[0].tolist()}

    _, wanted = finish(long.params, *begin())
    state, got = begin()
    masks = np.repeat(every_id(vocab), SLOTS, axis=0)
    masks[0] = 0
    for _ in range(3):
        state, output = decode.step(long.params, state, 1, masks)
        assert output.tokens[0].tolist() == [-1]
        assert output.active.tolist() == [True, False, True]
        got[2] += output.tokens[2].tolist()
    state, got = finish(long.params, state, got)
    assert got == wanted


def test_masks_compile_one_program(long: Network) -> None:
    state = decode.start(long.params, SLOTS, LENGTH)
    masks = np.repeat(every_id(long.params.config.vocab), SLOTS, axis=0)
    state, _ = decode.step(long.params, state, 1, masks)
    state, _ = prefill(long.params, state, 0, text(1, 20), new=9)
    before = cache_sizes(decode._step.plain)
    for word in (0, 1, 77):
        state, _ = decode.step(long.params, state, 1, np.full_like(masks, word))
    assert cache_sizes(decode._step.plain) == before
