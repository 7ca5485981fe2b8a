"""Drafts are what stood there before, and an answer is the same with and without them."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_jax import Sampling
from qwen_jax.config import Config
from qwen_jax.decoding import drafts
from qwen_jax.decoding.completion import complete
from qwen_jax.decoding.flat_params import Weights, flatten
from qwen_jax.decoding.state import Texts
from qwen_jax.nn.model import Qwen, init
from tests.qwen_jax.memorised_model import with_assets
from tests.qwen_jax.networks import GREEDY, QWEN2

LENGTH, WIDTH, MOST = 8192, 8, 4


# --- the lookup --------------------------------------------------------------------------------
def looked_up(ids: list[int]) -> list[int] | None:
    """What followed the last three ids when they stood there last; naively."""
    for end in range(len(ids) - 1, 2, -1):
        if ids[end - 3 : end] == ids[-3:]:
            period = len(ids) - end
            return [ids[end + at % period] for at in range(MOST)]
    return None


def grown(texts: Texts, slot: int, start: int, part: list[int]) -> Texts:
    tokens = np.zeros((1, WIDTH), np.int32)
    tokens[0, : len(part)] = part
    places = start + np.arange(WIDTH)[None]
    real = np.arange(WIDTH)[None] < len(part)
    slots = np.array([slot])
    return EXTEND(BEGIN(texts, slots, np.array([start == 0])), slots, tokens, places, real)


BEGIN, EXTEND = jax.jit(Texts.begin), jax.jit(Texts.extend)
FIND = jax.jit(Texts.find, static_argnums=3)


def test_few_ids_have_places_of_their_own() -> None:
    """So that below, no text takes another's place in the index."""
    grams = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)
    places = Texts.empty(1, LENGTH, MOST)._hash(jnp.asarray(grams))
    assert len(set(places.tolist())) == 27


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), max_size=60), min_size=1, max_size=3),
    st.lists(st.integers(1, WIDTH), min_size=1, max_size=20),
)
def test_the_index_finds_what_a_search_finds(written: list[list[int]], cuts: list[int]) -> None:
    """In texts that come in pieces, one after another in the same slot, beside another's."""
    texts = grown(Texts.empty(2, LENGTH, MOST), 1, 0, [1, 1, 1, 1, 1, 1])
    for ids in written:
        at = 0
        for cut in cuts * len(ids):
            texts = grown(texts, 0, at, ids[at : at + cut])
            at += len(ids[at : at + cut])
            if not 0 < at < len(ids) + 1:
                break
            found, there = FIND(texts, np.array([0]), np.array([at - 1]), MOST)
            expected = looked_up(ids[:at])
            assert there.tolist() == [expected is not None]
            assert expected is None or found[0].tolist() == expected
            if at == len(ids):
                break


def test_trust_follows_what_held() -> None:
    texts, slot, yes = Texts.empty(2, LENGTH, MOST), jnp.array([0]), jnp.array([True])
    judge = lambda share, count: [share] * count
    seen = []
    for share in judge(1.0, 1) + judge(0.0, 3) + judge(1.0, 4):
        texts = texts.judge(slot, jnp.array([share]), yes)
        seen.append(bool(texts.trusted(slot)[0]))
    assert seen == [True, True, False, False, True, True, True, True]
    assert texts.trusted(jnp.array([1]))[0]


# --- answers -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wild() -> Qwen:
    """Random weights whose answers wander, and fall into loops where it is cold."""
    hf = QWEN2 | {"max_position_embeddings": 256}
    config = Config.from_hf(hf | {"initializer_range": 0.15})
    return with_assets(init(config, jax.random.key(5)), None)


SAMPLINGS = [
    GREEDY,
    Sampling(temperature=0.5, logprobs=3),
    Sampling(temperature=0.3, repetition_penalty=1.05, stop_ids=((1, 2), (17,))),
    Sampling(temperature=0.4, presence_penalty=0.3, frequency_penalty=0.1, logit_bias={7: 1.0}),
    Sampling(temperature=0, frequency_penalty=0.05, min_tokens=20, stop_ids=((5,), (9,))),
]


def test_a_hundred_answers_are_the_same_with_and_without(wild: Qwen) -> None:
    """Tokens, log probabilities to the bit, and why they ended; four at once."""
    random, drafted, accepted, ends = np.random.default_rng(0), 0, 0, set()
    for number in range(25):
        part = random.integers(0, 96, (4, 5)).tolist()
        prompts = [ids * int(random.integers(1, 3)) for ids in part]
        kinds = [SAMPLINGS[(number + row) % len(SAMPLINGS)] for row in range(4)]
        how: dict[str, Any] = {"max_new_tokens": 60, "seed": number}
        plain = complete(wild, prompts, kinds, **how, draft_tokens=0)
        quick = complete(wild, prompts, kinds, **how, draft_tokens=4)
        for one, other in zip(plain, quick, strict=True):
            assert one.drafted == 0
            assert one.tokens == other.tokens
            assert (one.logprobs, one.top_logprobs) == (other.logprobs, other.top_logprobs)
            assert one.finish_reason == other.finish_reason
            ends.add(one.finish_reason)
            drafted, accepted = drafted + other.drafted, accepted + other.accepted
    assert ends == {"stop", "length"}
    assert 500 < accepted < drafted


def test_the_last_token_is_not_overshot(wild: Qwen) -> None:
    """What a slot has room for, and no token more, wherever drafts end."""
    ask = lambda count, **how: complete(wild, [[4] * 9] * 4, GREEDY, max_new_tokens=count, **how)[0]
    whole = ask(60, draft_tokens=0).tokens
    for count in range(56, 61):
        answer = ask(count, draft_tokens=4)
        assert answer.accepted > 0
        assert answer.tokens == whole[:count]


@pytest.mark.parametrize("wrong", [-1, 16, 1.5, True, "4"])
def test_a_wrong_number_is_named(wild: Qwen, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"got draft_tokens .*, wanted 0 to 15"):
        complete(wild, [[1]], draft_tokens=wrong)


def test_drafts_are_as_long_as_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """With products of our own few rows cost a CPU what one does; XLA's differ by their type."""
    config = Config.from_hf(QWEN2 | {"intermediate_size": 64})
    weights, short = (
        flatten(init(config, jax.random.key(0), dtype)) for dtype in (jnp.float32, jnp.bfloat16)
    )
    for kind in (weights, short):
        assert drafts.wanted(kind, 1, None) == drafts.DRAFT_TOKENS
        assert [drafts.most(kind, rows, 4) for rows in (1, 2, 4, 8, 64)] == [4, 3, 1, 0, 0]
    monkeypatch.setattr(Weights, "hosted", False)
    weights, short = replace(weights), replace(short)
    assert drafts.wanted(weights, 1, None) == 0
    assert drafts.wanted(weights, 2, None) == drafts.DRAFT_TOKENS
    assert drafts.wanted(weights, 1, 7) == 7
    assert [drafts.most(weights, rows, 4) for rows in (1, 2, 4, 8, 16, 64)] == [4, 4, 3, 1, 0, 0]
    assert [drafts.most(short, rows, 4) for rows in (1, 2, 4, 8)] == [3, 1, 0, 0]
    assert drafts.wanted(short, 1, None) == drafts.DRAFT_TOKENS
