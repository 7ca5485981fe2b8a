"""Attention reads the blocks that there are, and gives what reading all of them gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.nn.attention import PAGE, attend, attend_whole
from qwen_jax.nn.kv_cache import Store, quantize
from tests.qwen_jax.networks import distance

POSITIONS = [0, 63, 64, 300]  # of four rows: about the ends of pages
BLOCKS = 5


def inputs(dtype: str, length: int = 1) -> tuple[jax.Array, Store, Store]:
    random = np.random.default_rng(length)
    query = random.normal(size=(len(POSITIONS), length, 2, 3, 16)).astype(np.float32)

    def store() -> Store:
        data = random.normal(size=(len(POSITIONS), 2, BLOCKS * PAGE, 16)).astype(np.float32)
        return (
            Store(jnp.asarray(data, dtype), None)
            if dtype != "int8"
            else Store(*quantize(jnp.asarray(data)))
        )

    return jnp.asarray(query), store(), store()


def paged(store: Store, table: np.ndarray) -> Store:
    """The same in pages of a pool, with NaN where nothing of it is."""

    def lay(x: jax.Array) -> jax.Array:
        parts = np.asarray(x).reshape(len(POSITIONS), 2, BLOCKS, PAGE, *x.shape[3:])
        pool = np.full((table.max() + 2, 2, PAGE, *x.shape[3:]), 77, np.float32)
        if x.dtype != jnp.int8:
            pool[:] = np.nan
        pool[table] = np.moveaxis(parts.astype(np.float32), 2, 1)
        return jnp.asarray(pool, x.dtype)

    return jax.tree.map(lay, store)


jitted = jax.jit(attend)
TABLE = np.random.default_rng(0).permutation(30)[: len(POSITIONS) * BLOCKS].reshape(-1, BLOCKS)


def positions(length: int) -> jax.Array:
    return jnp.array(POSITIONS)[:, None] + jnp.arange(length)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("length", [1, 3])
def test_blocks_are_the_whole(length: int, dtype: str) -> None:
    """In slots of their own and in pages, one query a row and several."""
    query, key, value = inputs(dtype, length)
    places = positions(length)
    wanted = jax.jit(attend_whole)(query, key, value, places)
    ends = places[:, -1] + 1
    own = jitted(query, key, value, None, places, ends)
    assert distance(own, wanted) < 1e-6
    pools = paged(key, TABLE), paged(value, TABLE)
    np.testing.assert_array_equal(jitted(query, *pools, TABLE, places, ends), own)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_is_not_there_changes_no_bit(dtype: str) -> None:
    """Neither longer neighbours, nor rows without a text, nor what was left in pages."""
    query, key, value = inputs(dtype)
    pools, places = [paged(key, TABLE), paged(value, TABLE)], positions(1)
    ends = places[:, 0] + 1
    alone = np.asarray(jitted(query, *pools, TABLE, places, ends))
    poison = lambda x: x if x.dtype == jnp.int8 else x.at[TABLE[2, 1], :, 1:].set(jnp.nan)
    pools = jax.tree.map(poison, pools)
    for longest in (65, 320, 0):  # of the last row
        found = jitted(query, *pools, TABLE, places, ends.at[3].set(longest))
        np.testing.assert_array_equal(found[:3], alone[:3])
