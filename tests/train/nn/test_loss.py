"""Cross-entropy in chunks against the whole of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from qwen_jax.data.examples import IGNORED
from tests.qwen_jax.networks import temporary_bytes
from train.nn.loss import CHUNK, chunks, cross_entropy


def whole(head: Array, x: Array, targets: Array) -> Array:
    """With every logit there."""
    scores = jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", x, head))
    taken = jnp.take_along_axis(scores, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(targets == IGNORED, 0, taken))


def example(seed: int = 0, vocab: int = 50) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(seed)
    head, x = random.normal(size=(vocab, 16)), random.normal(size=(3, 12, 16))
    targets = random.integers(0, vocab, (3, 12))
    targets[random.random((3, 12)) < 0.3] = IGNORED
    return jnp.asarray(head, jnp.float32), jnp.asarray(x, jnp.float32), jnp.asarray(targets)


@pytest.mark.parametrize("pieces", [1, 3, 12])
def test_value_and_gradients(pieces: int) -> None:
    head, x, targets = example()
    got, pull = jax.vjp(lambda h, x: cross_entropy(h, x, targets, 3.0, pieces), head, x)
    wanted, pull_whole = jax.vjp(lambda h, x: 3 * whole(h, x, targets), head, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    for mine, theirs in zip(pull(0.5), pull_whole(0.5), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=6e-6)


def test_nothing_to_learn() -> None:
    head, x, targets = example()
    targets = jnp.full_like(targets, IGNORED)
    loss, pull = jax.vjp(lambda x: cross_entropy(head, x, targets, 1.0, 2), x)
    assert loss == 0
    assert not np.any(pull(1.0)[0])


def test_a_scale_saves_what_float16_would_lose() -> None:
    """A target that is nearly certain has a gradient below float16's least number."""
    head, x, targets = example()
    head, x = jnp.float16(head), jnp.float16(x)
    sure = 9 * head[jnp.maximum(targets, 0)]
    find = jax.grad(cross_entropy, 1)
    wanted = find(head.astype(jnp.float32), sure.astype(jnp.float32), targets, 2.0**-12, 3)
    scaled = find(head, sure, targets, 2.0**4, 3).astype(jnp.float32) / 2**16
    off = lambda x: jnp.linalg.norm(x - wanted) / jnp.linalg.norm(wanted)
    assert off(find(head, sure, targets, 2.0**-12, 3)) > 0.1
    assert off(scaled) < 1e-2


def test_logits_are_never_whole() -> None:
    """Of 4096 tokens and 32000 words they would take 500 MiB; so would their gradient."""
    shape = jax.ShapeDtypeStruct
    head, x = shape((32000, 8), jnp.float32), shape((1, 4096, 8), jnp.float32)
    loss = lambda head, x, targets: cross_entropy(head, x, targets, 1.0, chunks(1, 4096))
    for trained, products in ((1, 2), ((0, 1), 3)):
        program = jax.jit(jax.grad(loss, trained)).lower(head, x, shape((1, 4096), jnp.int32))
        made = program.compile()
        assert temporary_bytes(made) < 3 * CHUNK * 32000 * 4
        assert str(made.as_text()).count(" dot(") == products  # a frozen head costs no third one


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 9000))
def test_chunks_divide_the_length(rows: int, length: int) -> None:
    pieces = chunks(rows, length)
    assert length % pieces == 0
    assert rows * length // pieces <= CHUNK or pieces == length
