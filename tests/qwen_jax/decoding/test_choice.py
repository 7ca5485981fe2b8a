"""The next token of many rows, some after others, is that of all at once."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.decoding.choice import _GROUP, _Chosen, _in_groups, _one_by_one, sample_next
from qwen_jax.decoding.logits import History, SamplingArrays
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import Rows

VOCAB, COUNT = 40, 2 * _GROUP + 3  # the last group begins in the one before


def rows() -> Rows:
    draw = np.random.default_rng(0)
    kinds = [
        Sampling(temperature=0),
        Sampling(temperature=0.9, top_p=0.8, top_k=5, logprobs=3),
        Sampling(temperature=1.2, repetition_penalty=1.3, logit_bias={3: 2.0}),
    ]
    settings = [SamplingArrays.of(kinds[n % 3], ((7,),), n) for n in range(COUNT)]
    number = lambda: jnp.asarray(draw.integers(0, 9, COUNT), jnp.int32)
    return Rows(
        tokens=number(),
        positions=number(),
        prompt_lengths=number(),
        remaining=number(),
        active=jnp.asarray(draw.integers(0, 2, COUNT), bool),
        adapters=number(),
        history=History.empty(COUNT, VOCAB),
        settings=jax.tree.map(lambda *x: jnp.concatenate(x), *settings),
    )


@pytest.mark.parametrize("some_after_others", [_in_groups, _one_by_one])
def test_some_after_others(some_after_others: Callable[..., _Chosen]) -> None:
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(COUNT, VOCAB)), jnp.float32)
    allowed = jnp.full((COUNT, 2), 0xFFFFFFF7, jnp.uint32)  # not 3
    asked = rows(), logits, allowed
    active = np.asarray(asked[0].active)
    wanted, got = jax.jit(_Chosen.of)(*asked), jax.jit(some_after_others)(*asked)
    asks = np.asarray(asked[0].settings.logprobs & active)  # others' may be zeros
    told = active if some_after_others is _one_by_one else slice(None)  # it ends with the last
    for name, part, whole in zip(wanted._fields, got, wanted, strict=True):
        assert part.dtype == whole.dtype
        seen = asks if name.startswith("top") else told
        np.testing.assert_allclose(part[seen], whole[seen], rtol=1e-6)
    assert asks.any()
    np.testing.assert_array_equal(got.tokens, wanted.tokens)
    assert len(set(np.asarray(got.tokens).tolist())) > 5
    assert not (np.asarray(got.tokens) == 3)[active].any()


def test_few_rows_are_one_group() -> None:
    """They have no loop, but on a CPU."""
    logits = jnp.zeros((COUNT, VOCAB))
    many = lambda rows: sample_next(rows, logits, None, None)
    few = lambda rows: sample_next(rows.take(jnp.arange(_GROUP)), logits[:_GROUP], None, None)
    for ask, wanted in ((many, True), (few, False)):
        traced = jax.jit(ask).trace(rows())
        text = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")}
        assert ("dynamic_slice" in text["tpu"]) is wanted
        assert "dynamic_slice" in text["cpu"]


def test_the_first_of_equals_is_the_best() -> None:
    greedy = replace(rows(), active=jnp.ones(COUNT, bool)).take(jnp.arange(1))  # row 0 is greedy
    for best in ((0, 5), (3, 4), (39,)):
        logits = jnp.zeros((1, VOCAB)).at[0, jnp.asarray(best)].set(1.0)
        assert int(sample_next(greedy, logits, None, None)[0].tokens[0]) == best[0]


@pytest.mark.parametrize("vocab", [300, 2048, 50257])
def test_bits_do_not_depend_on_neighbours(vocab: int) -> None:
    """On a CPU; of all that is told of a row, whatever it asks for."""
    everyone = rows()
    everyone = replace(everyone, active=jnp.ones(COUNT, bool), history=History.empty(COUNT, vocab))
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(COUNT, vocab)) * 3, jnp.float32)
    ask = jax.jit(lambda rows, logits: sample_next(rows, logits, None, None))
    _, wanted = ask(everyone, logits)
    for count in (*range(1, 10), 12):
        _, got = ask(everyone.take(jnp.arange(count)), logits[:count])
        asks = np.flatnonzero(everyone.settings.logprobs[:count])
        np.testing.assert_array_equal(got.tokens, wanted.tokens[:count])
        np.testing.assert_array_equal(got.logprobs, wanted.logprobs[:count])
        np.testing.assert_array_equal(got.top_logprobs[asks], wanted.top_logprobs[asks])
