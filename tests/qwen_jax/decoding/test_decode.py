"""Greedy continuations of the originals, and requests that never feel each other."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.decoding import decode, prompts
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import State
from qwen_jax.nn.model import Qwen
from tests.conftest import Golden
from tests.qwen_jax.networks import (
    GREEDY,
    Network,
    answer,
    cache_sizes,
    finish,
    golden_network,
    piece,
    prefill,
    settings,
)
from tests.reference import reference_logits

MODERN = ("modern/qwen2_gqa", "modern/qwen25_yarn", "modern/qwen3")
SLOTS, LENGTH = 3, 256  # of every State here, so that few programs are compiled


def start(params: Qwen, dtype: Any = None) -> State:
    return decode.start(params, SLOTS, LENGTH, dtype)


# --- the originals -----------------------------------------------------------------------------
def requests(outputs: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Prompts without their padding, and what the original wrote after them."""
    for ids, whole in zip(outputs["input_ids"], outputs["greedy"], strict=True):
        yield ids, whole[len(ids) :].tolist()
    batch = outputs["batch_input_ids"], outputs["batch_greedy"], outputs["batch_attention_mask"]
    for ids, whole, mask in zip(*batch, strict=True):
        yield ids[mask.astype(bool)], whole[len(ids) :].tolist()


@pytest.mark.parametrize("name", ["v1/base", *MODERN])
def test_greedy_of_the_originals(golden: Golden, name: str) -> None:
    """A full house at first; a request comes in when all others are done."""
    network = golden_network(golden(name))
    state, waiting = start(network.params), list(requests(network.outputs))
    if "yarn" in name:  # only these are past the original length
        waiting = waiting[:2]
    first, wanted = {}, {}
    for slot, (ids, new) in enumerate(waiting[:SLOTS]):
        state, output = prefill(network.params, state, slot, ids, new=len(new))
        first[slot], wanted[slot] = output.tokens[0].tolist(), new
    state, got = finish(network.params, state, first)
    assert got == wanted
    for ids, new in waiting[SLOTS:]:
        state, alone = answer(network.params, state, 1, ids, new=len(new))
        assert alone == new


@pytest.mark.parametrize("length", ["cross", 16, 33, 64, 120, 200])
def test_greedy_beyond_the_training_length(long: Network, length: int | str) -> None:
    """seq_length is 32; NTK's alpha stays the prompt's while an answer crosses it."""
    tail = "" if length == "cross" else f"_{length}"
    head = "cross_" if length == "cross" else ""
    ids, whole = long.outputs[f"{head}input_ids{tail}"][0], long.outputs[f"{head}greedy{tail}"][0]
    _, got = answer(long.params, start(long.params), 2, ids, new=len(whole) - len(ids))
    assert got == whole[len(ids) :].tolist()


# --- one network for everything below: NTK and log-n make positions and lengths matter ---------
@pytest.fixture(scope="module")
def long(golden: Golden) -> Network:
    return golden_network(golden("v1/longctx"))


def text(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 512, length).tolist()


SAMPLINGS = [
    GREEDY,
    Sampling(temperature=1.0),
    Sampling(temperature=0.9, top_p=0.9, top_k=60, repetition_penalty=1.2, presence_penalty=0.5),
    Sampling(temperature=1.3, min_p=0.01, frequency_penalty=0.3, logit_bias={7: 2.0}, logprobs=5),
]
PROMPTS = [text(11, 40), text(2, 9), text(3, 60), text(4, 16)]


@pytest.fixture(scope="module")
def alone(long: Network) -> list[list[int]]:
    answers = [  # what each request gets in an empty house of its own
        answer(long.params, start(long.params), 0, ids, settings(sampling, seed=n), new=10)[1]
        for n, (ids, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True))
    ]
    assert len({token for tokens in answers for token in tokens}) > 30  # they differ
    return answers


@pytest.mark.parametrize("order", [(0, 1, 2), (3, 2, 1), (2, 0, 3)])
def test_neighbours_and_slots_change_nothing(
    long: Network, alone: list[list[int]], order: tuple[int, int, int]
) -> None:
    """One after another moves in while the earlier ones go on writing."""
    state, first = start(long.params), {}
    for slot, n in enumerate(order):
        sampling = settings(SAMPLINGS[n], seed=n)
        state, output = prefill(long.params, state, slot, PROMPTS[n], sampling, new=10)
        first[slot] = output.tokens[0].tolist()
        state, output = decode.step(long.params, state, 2)
        for other in first:
            first[other] += output.tokens[other].tolist()
    _, got = finish(long.params, state, first)
    assert got == {slot: alone[n] for slot, n in enumerate(order)}


def test_batch_size_changes_nothing(long: Network, alone: list[list[int]]) -> None:
    state = decode.start(long.params, 1, LENGTH)
    _, got = answer(long.params, state, 0, PROMPTS[3], settings(SAMPLINGS[3], seed=3), new=10)
    assert got == alone[3]


def test_seeds(long: Network, alone: list[list[int]]) -> None:
    sampling = settings(SAMPLINGS[1], 99)
    _, other = answer(long.params, start(long.params), 0, PROMPTS[1], sampling, 10)
    assert other != alone[1]


@pytest.mark.parametrize("chunk", [7, 16, 30, 64])
def test_a_prompt_in_chunks(long: Network, alone: list[list[int]], chunk: int) -> None:
    """Chunks that divide it or not, with steps of a neighbour and a stale slot between them."""
    longer = text(5, 60)
    state, _ = answer(long.params, start(long.params), 1, longer, new=6)
    state, _ = prefill(long.params, state, 0, PROMPTS[1], new=40)
    ids = PROMPTS[0]
    for at in range(0, len(ids), chunk):
        state, _ = decode.step(long.params, state, 2)
        part = piece(1, ids, at, at + chunk, settings(SAMPLINGS[0]), 10)
        state, output = prompts.prefill(long.params, state, [part])
    state, got = finish(long.params, state, {1: output.tokens[0].tolist()})
    assert got[1] == alone[0]


def test_int8_cache(long: Network) -> None:
    """Through prefill and step: int8 stored, and nearly what a plain cache gives."""
    sampling, found = settings(dataclasses.replace(GREEDY, logprobs=5)), []
    for dtype in (None, jnp.int8):
        state, _ = prefill(long.params, start(long.params, dtype), 1, PROMPTS[2], sampling, new=9)
        assert state.cache.keys[0].data.dtype == (dtype or jnp.float32)
        found.append(decode.step(long.params, state, 4)[1].top_logprobs[1])
    assert 1e-5 < np.abs(found[0] - found[1]).max() < 0.1


def test_history_reaches_over_chunks(long: Network) -> None:
    """Repetition penalty on an id of the first chunk; a stop sequence across chunks and answer."""
    ids = text(135, 40)
    (free,) = answer(long.params, start(long.params), 0, ids, new=1)[1]
    assert free in {*ids[:13]} - {*ids[13:]}
    sampling = settings(Sampling(temperature=0, repetition_penalty=1.5))
    whole, parts = (
        answer(long.params, start(long.params), 0, ids, sampling, 9, c)[1] for c in (64, 13)
    )
    assert whole == parts
    assert whole[0] != free
    state, _ = prefill(long.params, start(long.params), 0, ids, chunk=13)
    np.testing.assert_array_equal(np.flatnonzero(state.rows.history.prompted[0]), np.unique(ids))
    stop = settings(Sampling(temperature=0, stop_ids=((*ids[33:], free),)))
    assert answer(long.params, start(long.params), 0, ids, stop, 9, 13)[1] == [free]


# --- where an answer ends ----------------------------------------------------------------------
@pytest.mark.parametrize("new", [1, 2, 5, 9])
def test_max_new_tokens(long: Network, alone: list[list[int]], new: int) -> None:
    state, output = prefill(long.params, start(long.params), 1, PROMPTS[0], new=new)
    state, got = finish(long.params, state, {1: output.tokens[0].tolist()})
    assert got[1] == alone[0][:new]


@pytest.mark.parametrize(
    ("end", "least", "length"),
    [((4,), 0, 5), ((4,), 4, 5), ((2, 3, 4), 0, 5), ((0,), 0, 1), ((1, 3), 0, 10)],
)
def test_stop_sequences_end_an_answer_and_stay(
    long: Network, alone: list[list[int]], end: tuple[Any, ...], least: int, length: int
) -> None:
    """Sequences made of the greedy answer's own ids, by their places in it."""
    free = alone[0]
    assert len(set(free)) == len(free)
    sequence = tuple(free[i] for i in end)
    stop = settings(Sampling(temperature=0, stop_ids=(sequence,), min_tokens=least))
    _, got = answer(long.params, start(long.params), 0, PROMPTS[0], stop, 10)
    assert got == free[:length]


def test_min_tokens_forbids_the_stop(long: Network, alone: list[list[int]]) -> None:
    """The id that would end it too early is not written; ids of the checkpoint count alike."""
    sampling = settings(Sampling(temperature=0, min_tokens=7), eos=((alone[0][4],),))
    _, got = answer(long.params, start(long.params), 0, PROMPTS[0], sampling, 10)
    assert got[:4] == alone[0][:4]
    assert alone[0][4] not in got[:7]
    assert len(got) > 7


def test_release(long: Network, alone: list[list[int]]) -> None:
    state, _ = prefill(long.params, start(long.params), 0, PROMPTS[0], new=99)
    state, _ = prefill(long.params, state, 2, PROMPTS[1], new=99)
    state = decode.release(long.params, state, 0)
    assert state.rows.active.tolist() == [False, False, True]
    state, output = decode.step(long.params, state, 4)
    assert (output.tokens[0] == -1).all()
    assert (output.tokens[2] >= 0).all()
    assert int(state.rows.positions[0]) == 40  # an idle slot does not walk out of the cache
    state = decode.release(long.params, state, 2)
    state, output = decode.step(long.params, state, 4)
    assert (output.tokens == -1).all()
    # what the request before wrote is not held against the next; alone[0] repeats nothing itself
    once = settings(Sampling(temperature=0, presence_penalty=100))
    assert answer(long.params, state, 0, PROMPTS[0], once, 10)[1] == alone[0]


# --- logprobs ----------------------------------------------------------------------------------
def test_logprobs(long: Network) -> None:
    """Of the model's own distribution, whatever temperature, penalties and biases do to it."""
    ids, sampling = PROMPTS[3], settings(dataclasses.replace(SAMPLINGS[3], logit_bias={7: 99.0}))
    state, first = prefill(long.params, start(long.params), 1, ids, sampling, new=5)
    state, rest = decode.step(long.params, state, 4)
    places = [(first, 0, 0), *((rest, 1, i) for i in range(4))]
    answered = [int(output.tokens[row, i]) for output, row, i in places]
    assert 7 in answered
    logits = reference_logits(long.hf, long.tensors, ids + answered[:-1], prompt_length=len(ids))
    for (output, row, i), scores in zip(places, logits[len(ids) - 1 :], strict=True):
        wanted = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
        best, token = np.argsort(-wanted)[:20], int(output.tokens[row, i])
        assert float(output.logprobs[row, i]) == pytest.approx(wanted[token], abs=1e-4)
        np.testing.assert_allclose(output.top_logprobs[row, i], wanted[best], atol=1e-4)
        np.testing.assert_array_equal(output.top_tokens[row, i], best)


def test_a_greedy_token_has_exactly_the_best_logprob(long: Network) -> None:
    sampling = settings(Sampling(temperature=0, logprobs=1))
    state, _ = prefill(long.params, start(long.params), 0, PROMPTS[2], sampling, new=9)
    _, output = decode.step(long.params, state, 4)
    np.testing.assert_array_equal(output.logprobs[0], output.top_logprobs[0, :, 0])
    np.testing.assert_array_equal(output.tokens[0], output.top_tokens[0, :, 0])


# --- programs and memory -----------------------------------------------------------------------
def test_nothing_compiles_again(long: Network) -> None:
    """Any sampling, seed, prompt within a bucket, place, slot and limit: the programs there are."""
    state, params = start(long.params), flatten(long.params)

    jitted = prompts._prefill, decode._step, decode._release, decode._start

    def request(state: State, slot: int, ids: list[int], at: int, sampling: Any, new: int) -> State:
        part = piece(slot, [0] * at + ids, at, at + len(ids), sampling, new)
        state, _ = prompts.prefill(params, state, [part])
        state, _ = decode.step(params, state, 4)
        return decode.release(params, state, slot)

    state = request(state, 0, text(0, 16), 0, settings(), 3)
    state = request(state, 0, text(0, 16), 16, settings(), 3)
    before = cache_sizes(*jitted)
    other = Sampling(stop_ids=((1, 2),), min_tokens=2, ignore_eos=True)
    for n, sampling in enumerate([*SAMPLINGS, other]):
        state = request(state, n % 3, text(n, n + 1), 0, settings(sampling, 2**63 + n, ((3,),)), n)
        state = request(state, n % 3, text(n, n + 2), n + 1, settings(sampling, n), 50)
    decode.start(params, SLOTS, LENGTH)
    assert cache_sizes(*jitted) == before


def test_a_model_with_assets_is_the_same_program(long: Network) -> None:
    """A tokenizer that travels with the parameters is no reason to compile."""
    assets: Any = object()
    dressed = dataclasses.replace(long.params, assets=assets)
    assert flatten(dressed).structure is flatten(long.params).structure


def test_state_is_donated(long: Network) -> None:
    old, _ = prefill(long.params, start(long.params), 0, PROMPTS[1], new=200)
    where = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(old.cache)]
    state, _ = decode.step(long.params, old, 4)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.cache))
    for _ in range(20):
        state, _ = decode.step(long.params, state, 4)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.cache)] == where


def test_caches_hold_prompts_and_answers() -> None:
    for prompt in [1, 15, 17, 1000, 2047, 2048, 2049, 5000, 30000]:
        for new in [1, 9, 512, 4000]:
            length = decode.cache_length(prompt, new)
            assert prompt + new <= length < 1.25 * (prompt + new) + 64
