"""The next token of many rows, some after others, is that of all at once."""

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.decoding.logits import History, SamplingArrays
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import _GROUP, Rows, _Chosen, _in_groups, sample_next

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


def test_in_groups() -> None:
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(COUNT, VOCAB)), jnp.float32)
    allowed = jnp.full((COUNT, 2), 0xFFFFFFF7, jnp.uint32)  # not 3
    asked = rows(), logits, allowed
    wanted, got = jax.jit(_Chosen.of)(*asked), jax.jit(_in_groups)(*asked)
    asks = np.asarray((asked[0].settings.logprobs > 0) & asked[0].active)  # others' may be zeros
    for name, part, whole in zip(wanted._fields, got, wanted, strict=True):
        assert part.dtype == whole.dtype
        seen = asks if name.startswith("top") else slice(None)
        np.testing.assert_allclose(part[seen], whole[seen], rtol=1e-6)
    assert asks.any()
    assert len(set(np.asarray(got.tokens).tolist())) > 5
    assert not (np.asarray(got.tokens) == 3)[np.asarray(asked[0].active)].any()


def test_few_rows_are_one_group() -> None:
    """They have no loop."""
    logits = jnp.zeros((COUNT, VOCAB))
    many = lambda rows: sample_next(rows, logits, None, None)
    few = lambda rows: sample_next(rows.take(jnp.arange(_GROUP)), logits[:_GROUP], None, None)
    for ask, wanted in ((many, True), (few, False)):
        text = jax.jit(ask).lower(rows()).as_text()
        assert ("dynamic_slice" in text) is wanted
