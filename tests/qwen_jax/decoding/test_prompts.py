"""Prompts in company, in shared pages, resumed, scored, and answers kept to masks: for servers."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qwen_jax
from qwen_jax.decoding import decode, prompts
from qwen_jax.decoding.flat_params import Weights, flatten
from qwen_jax.decoding.logits import SamplingArrays, every_id
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import State
from qwen_jax.nn.attention import PAGE
from qwen_jax.nn.sharding import make_mesh
from tests.conftest import Golden
from tests.qwen_jax.networks import (
    Network,
    cache_sizes,
    golden_network,
    piece,
    prefill,
    settings,
)
from tests.reference import reference_logits

SLOTS, LENGTH, PAGES = 4, 256, 17
TABLE = np.arange(16, dtype=np.int32).reshape(SLOTS, LENGTH // PAGE)
TILE, ROWS = 16, 8
SAMPLED = settings(Sampling(temperature=0.8, repetition_penalty=1.3, logprobs=5), seed=5)


@pytest.fixture(scope="module")
def demo() -> Weights:
    """Its products are large enough for the paths of XLA's CPU that keep a row's bits."""
    return flatten(qwen_jax.load("demo"))


@pytest.fixture(scope="module")
def long(golden: Golden) -> Network:
    return golden_network(golden("v1/longctx"))


def text(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 512, length).tolist()


def start(params: Any, poison: bool = False) -> State:
    state = decode.start(params, SLOTS, LENGTH, pages=PAGES)
    fill = lambda x: jnp.full_like(x, jnp.nan)
    return replace(state, cache=jax.tree.map(fill, state.cache)) if poison else state


def call(params: Any, state: State, *pieces: Any, table: np.ndarray = TABLE) -> tuple[State, Any]:
    how: Any = {"tile": TILE, "rows": ROWS, "count": ROWS}
    return prompts.prefill(params, state, pieces, table, **how)


def go_on(
    params: Any,
    state: State,
    slot: int,
    first: Any,
    table: np.ndarray = TABLE,
    company: tuple[int, ...] = (),
) -> tuple[list[Any], np.ndarray]:
    """A slot's next tokens, and their log probabilities to the bit, alone or in company."""
    members = [*company, slot]
    slots = np.full(1 << (len(members) - 1).bit_length(), SLOTS, np.int32)
    slots[: len(members)] = members
    tokens, logprobs = [first.tokens], [first.top_logprobs]
    for _ in range(3):
        chosen = table[np.minimum(slots, SLOTS - 1)]
        state, output = decode.step(params, state, 4, slots=slots, table=chosen)
        output = jax.device_get(output)
        tokens.append(output.tokens[len(company)])
        logprobs.append(output.top_logprobs[len(company)])
    return np.concatenate(tokens).tolist(), np.concatenate(logprobs)


def row(output: Any, number: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[number], output)


# --- the same bits -----------------------------------------------------------------------------
IDS = text(1, 150)


@pytest.fixture(scope="module")
def alone(demo: Weights) -> tuple[list[Any], np.ndarray]:
    state = start(demo)
    for at in (0, 100):
        state, output = call(demo, state, piece(0, IDS, at, at + 100, SAMPLED, 40))
    return go_on(demo, state, 0, row(output, 0))


def check(got: tuple[list[Any], np.ndarray], wanted: tuple[list[Any], np.ndarray]) -> None:
    assert got[0] == wanted[0]
    np.testing.assert_array_equal(got[1], wanted[1])


@pytest.mark.parametrize("cuts", [(128,), (16, 23, 64, 130), (1, 2, 126)])
def test_bits_in_company(demo: Weights, alone: Any, cuts: tuple[int, ...]) -> None:
    """However a prompt is cut, with whom it is computed, and wherever its pages are; old ones
    hold NaN.
    """
    state, table = start(demo, poison=True), np.roll(TABLE[::-1], 1)
    state, _ = call(demo, state, piece(3, text(7, 90), 0, 90, SAMPLED, 60), table=table)
    for at, end in zip((0, *cuts), (*cuts, len(IDS)), strict=True):
        part = piece(2, IDS, at, end, SAMPLED, 40)
        company = [piece(1, text(8, 9), 0, 9, new=50)] if end - at < 100 else []
        state, output = call(demo, state, *company, part, table=table)
    check(go_on(demo, state, 2, row(output, len(company)), table, company=(3, 1)), alone)


def test_bits_of_products_of_our_own() -> None:
    """One row of a single CPU's network has no shadow."""
    params = flatten(qwen_jax.load("demo", mesh=make_mesh(devices=jax.devices()[:1])))
    assert params.hosted
    state = start(params)
    parts = [piece(slot, text(slot, 30), 0, 30, SAMPLED, 40) for slot in (0, 1, 2)]
    state, output = call(params, state, *parts)
    together = go_on(params, jax.tree.map(jnp.copy, state), 2, row(output, 2), company=(0, 1))
    check(go_on(params, state, 2, row(output, 2)), together)


def test_bits_of_an_answer_that_comes_back(demo: Weights, alone: Any) -> None:
    """Computed again from its tokens, in another slot: penalties, seed and budget go on."""
    so_far = [*IDS, *alone[0][:7]]
    state, parts = start(demo, poison=True), ((0, 96), (96, len(so_far)))
    for at, end in parts:
        part = replace(piece(2, so_far, at, end, SAMPLED, 10), prompt_length=len(IDS))
        state, output = call(demo, state, part)
    got = go_on(demo, state, 2, row(output, 0))
    assert got[0] == [*alone[0][7:10], *[-1] * 10]
    np.testing.assert_array_equal(got[1][:3], alone[1][7:10])


@pytest.mark.parametrize("shared", [64, 128])
def test_bits_of_a_shared_beginning(demo: Weights, alone: Any, shared: int) -> None:
    """Pages of another, the last of them copied, and what penalties know of what they hold."""
    other = [*IDS[:140], *text(3, 20)]
    state, table = start(demo), TABLE.copy()
    for at in (0, 128):
        state, _ = call(demo, state, piece(0, other, at, at + 128, SAMPLED, 40))
    table[1, : shared // PAGE] = table[0, : shared // PAGE]
    if shared == 128:
        state, shared = decode.copy_page(demo, state, int(table[0, 2]), int(table[1, 2])), 137
    state = prompts.recall(demo, state, 1, IDS[:shared], 0, len(IDS))
    state, output = call(demo, state, piece(1, IDS, shared, 150, SAMPLED, 40), table=table)
    check(go_on(demo, state, 1, row(output, 0), table, company=(0,)), alone)


def test_a_stop_sequence_reaches_into_a_shared_beginning(long: Network) -> None:
    ids, state = text(4, 65), start(long.params)
    state, output = call(long.params, state, piece(0, ids, 0, 65))
    free = int(output.tokens[0, 0])
    sampling = settings(Sampling(temperature=0, stop_ids=((*ids[60:], free),)))
    state = prompts.recall(long.params, state, 1, ids[:64], 0, 65)
    table = TABLE.copy()
    table[1, 0] = table[0, 0]
    _, output = call(long.params, state, piece(1, ids, 64, 65, sampling, 9), table=table)
    assert int(output.tokens[0, 0]) == free
    assert not bool(output.active[0])


# --- scoring -----------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [2, 32, 33, 100])
def test_scores_of_a_prompt(long: Network, length: int) -> None:
    """Every token's, given those before it; against the reference, NTK of the whole length."""
    ids, chunk = text(length, length), 32
    state, found = start(long.params), []
    for at in range(0, length - 1, chunk):
        end = min(length - 1, at + chunk)
        how: Any = {"start": at, "prompt_length": length, "tile": 16, "rows": 2, "table": TABLE}
        parts = ids[at:end], ids[at + 1 : end + 1]
        state, scores = prompts.score_chunk(long.params, state, 1, *parts, **how)
        found.append(jax.tree.map(lambda x, n=end - at: np.asarray(x)[:n], scores))
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    logits = reference_logits(long.hf, long.tensors, ids, prompt_length=length)[:-1]
    shifted = logits - logits.max(axis=-1, keepdims=True)
    wanted = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(whole.logprobs, wanted[np.arange(length - 1), ids[1:]], atol=2e-4)
    np.testing.assert_allclose(whole.top_logprobs[:, 0], wanted.max(axis=-1), atol=2e-4)
    np.testing.assert_allclose(
        np.take_along_axis(wanted, whole.top_tokens, axis=1), whole.top_logprobs, atol=2e-4
    )


# --- masks -------------------------------------------------------------------------------------
def mask(vocab: int, *ids: int) -> np.ndarray:
    words = np.zeros_like(every_id(vocab))
    for id in ids:
        words[0, id // 32] |= np.uint32(1 << id % 32)
    return words


def test_only_allowed_ids_are_chosen(long: Network) -> None:
    vocab, state = long.params.config.vocab, decode.start(long.params, 3, LENGTH)
    wanted: list[Any] = [3, 64, vocab - 1, 31, 32]
    sampling, first = settings(Sampling(temperature=1.0)), mask(vocab, wanted[0])
    state, output = prefill(long.params, state, 1, text(1, 20), sampling, 9, allowed=first)
    got = output.tokens[0].tolist()
    for id in wanted[1:]:
        rows = np.repeat(every_id(vocab), 3, axis=0)
        rows[1] = mask(vocab, id)[0]
        state, output = decode.step(long.params, state, 1, rows)
        got += output.tokens[1].tolist()
    assert got == wanted


def test_the_best_allowed_id_wins(long: Network) -> None:
    vocab, ids = long.params.config.vocab, text(2, 20)
    sampling: SamplingArrays = settings(Sampling(temperature=0, logprobs=20))
    state, free = prefill(long.params, decode.start(long.params, 3, LENGTH), 0, ids, sampling, 9)
    third = int(free.top_tokens[0, 0, 2])
    rest = mask(vocab, *free.top_tokens[0, 0, 2:].tolist())
    _, output = prefill(long.params, state, 0, ids, sampling, 9, allowed=rest)
    assert output.tokens[0].tolist() == [third]
    np.testing.assert_array_equal(output.top_tokens, free.top_tokens)  # the model's own view


def test_a_slot_that_is_not_asked_waits(demo: Weights, alone: Any) -> None:
    """It stays as it is, while others of one call and program go on."""
    state, output = call(
        demo, start(demo), piece(1, text(2, 40), 0, 40, new=99), piece(3, IDS, 0, 64, SAMPLED, 40)
    )
    state, output = call(demo, state, piece(3, IDS, 64, 150, SAMPLED, 40))
    slots = np.array([1], np.int32)
    before = cache_sizes(decode._step.plain)
    for _ in range(2):
        state, other = decode.step(demo, state, 4, slots=slots, table=TABLE[[1]])
        assert other.tokens[0].min() >= 0
    check(go_on(demo, state, 3, row(output, 0)), alone)
    assert cache_sizes(decode._step.plain) == before


def test_an_answer_does_not_outgrow_its_budget(long: Network) -> None:
    state, output = call(long.params, start(long.params), piece(0, text(1, 20), 0, 20, new=3))
    tokens, _ = go_on(long.params, state, 0, row(output, 0))
    assert sum(token >= 0 for token in tokens) == 3


@pytest.mark.parametrize(
    ("platform", "wanted"), [("cpu", [16, 24, 32]), ("tpu", [16, 32, 64, 128, 256, 512])]
)
def test_rows_are_of_few_sizes(platform: str, wanted: list[int]) -> None:
    """The least that holds a text, or the largest; on a CPU no further than eight from it."""
    sizes = {length: prompts.tile_of(platform, length) for length in range(1, 2049)}
    assert sorted(set(sizes.values())) == wanted
    for length, size in sizes.items():
        assert size == next((n for n in wanted if n >= length), wanted[-1])
