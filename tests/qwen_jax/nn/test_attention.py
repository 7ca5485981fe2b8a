"""A step reads the keys that there are, and gives what reading all of them gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.nn.attention import attend
from qwen_jax.nn.kv_cache import Store, quantize
from tests.qwen_jax.networks import distance

POSITIONS = [0, 511, 512, 700]  # of four rows: about the ends of blocks


def inputs(length: int, dtype: str) -> tuple[jax.Array, Store, Store]:
    random = np.random.default_rng(length)
    query = random.normal(size=(len(POSITIONS), 1, 2, 3, 16)).astype(np.float32)

    def store() -> Store:
        data = jnp.asarray(random.normal(size=(len(POSITIONS), 2, length, 16)), jnp.float32)
        return Store(data.astype(dtype), None) if dtype != "int8" else Store(*quantize(data))

    return jnp.asarray(query), store(), store()


@jax.jit
def step(
    query: jax.Array, key: Store, value: Store, longest: jax.Array | None, rows: jax.Array
) -> jax.Array:
    return attend(query, key, value, rows[:, None], longest)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("length", [1024, 1000, 513])
def test_blocks_are_the_whole(length: int, dtype: str) -> None:
    query, key, value = inputs(length, dtype)
    rows = jnp.minimum(jnp.array(POSITIONS), length - 1)
    whole = step(query, key, value, None, rows)
    assert distance(step(query, key, value, rows.max() + 1, rows), whole) < 1e-6


def test_what_is_not_there_changes_no_bit() -> None:
    """Neither longer neighbours, nor how long they are, nor rows that do not count."""
    query, key, value = inputs(2048, "float32")
    rows = jnp.array(POSITIONS)
    alone = np.asarray(step(query, key, value, jnp.int32(701), rows))
    for longest in (1024, 1025, 2048):
        np.testing.assert_array_equal(step(query, key, value, jnp.int32(longest), rows), alone)
    released = jnp.array([0, 511, 2000, 5000])
    stale = step(query, key, value, jnp.int32(512), released)
    np.testing.assert_array_equal(stale[:2], alone[:2])
    assert np.isfinite(stale).all()
