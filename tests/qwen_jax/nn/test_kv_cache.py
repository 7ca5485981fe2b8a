"""Keys and values come back as they went in, wherever they lie."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from safetensors.numpy import load_file

from qwen_jax.config import Config
from qwen_jax.nn.kv_cache import Cache, NoCache, Store, quantize
from qwen_jax.nn.model import Qwen
from tests.conftest import Golden
from tests.qwen_jax.networks import V1, distance, golden_network
from tests.qwen_jax.nn.kernels.cases import projected

SLOTS, HEADS, LENGTH, SIZE = 3, 2, 24, 4
CONFIG = Config.from_hf(V1)


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dequantized(x: Array, scale: Array) -> np.ndarray:
    return np.asarray(x, np.float64) * np.asarray(scale)[..., None]


# --- int8 -------------------------------------------------------------------------------------
def test_int8_is_at_least_twice_as_exact_as_the_original(golden: Golden) -> None:
    outputs = load_file(golden("v1/kvint8") / "golden.safetensors")
    exact = outputs["primitive_in"]
    data, scale = quantize(jnp.asarray(exact))
    assert (data.dtype, scale.dtype, scale.shape) == (jnp.int8, jnp.float32, exact.shape[:-1])
    error = lambda x: np.sqrt(np.mean((x - exact) ** 2))
    assert error(dequantized(data, scale)) < error(outputs["primitive_out"]) / 2


@given(st.integers(0, 99), st.sampled_from([1e-20, 1.0, 1e20]))
@settings(max_examples=20, deadline=None)
def test_int8_rounds_to_half_a_step(seed: int, size: float) -> None:
    x = numbers(seed, 5, 8) * np.float32(size)
    data, scale = quantize(jnp.asarray(x))
    step = np.asarray(scale)[:, None]
    assert (np.abs(dequantized(data, scale) - x) <= 0.502 * step).all()
    assert np.abs(np.asarray(data)).max() == 127


def test_int8_of_zeros_is_zero() -> None:
    data, scale = quantize(jnp.zeros((2, 8)))
    assert not dequantized(data, scale).any()


@jax.jit
def chunk(params: Qwen, cache: Cache, tokens: Array, positions: Array) -> tuple[Array, Cache]:
    x, cache = params(tokens, positions, jnp.full(1, 24), cache)
    return params.logits(x), cache


def test_logits_with_an_int8_cache(golden: Golden) -> None:
    """Prefilled and stepped: closer to the plain ones than the original's int8 comes (2e-2)."""
    network = golden_network(golden("v1/base"))
    tokens, plain = network.outputs["input_ids"][:1], network.outputs["logits"][:1]
    cache, logits = Cache.empty(network.params.config, 1, 40, jnp.int8), []
    cache = cache.select(jnp.zeros((1, 1), jnp.int32), None)
    for place in [range(20), *([i] for i in range(20, 24))]:
        part = np.array(place)[None]
        some, cache = chunk(network.params, cache, tokens[:, part[0]], part)
        logits.append(some)
    error = distance(np.concatenate(logits, axis=1), plain)
    assert 1e-4 < error < 1e-2


def test_int8_takes_a_byte_a_number() -> None:
    size = lambda dtype: sum(x.nbytes for x in jax.tree.leaves(Cache.empty(CONFIG, 1, 8, dtype)))
    whole = 2 * CONFIG.layers * CONFIG.kv_heads * 8
    assert size(jnp.int8) == whole * (CONFIG.head_dim + 4)
    assert size(jnp.bfloat16) == whole * CONFIG.head_dim * 2


# --- writing ----------------------------------------------------------------------------------
write = jax.jit(Store.write)


def content(store: Store) -> np.ndarray:
    """float64 [P K page H]"""
    if store.scale is None:
        return np.asarray(store.data, np.float64)
    return dequantized(store.data, store.scale)


def filled(
    seed: int, dtype: Any, slots: int = SLOTS, heads: int = HEADS, size: int = SIZE
) -> Store:
    x = jnp.asarray(numbers(seed, slots, heads, LENGTH, size))
    return Store(*quantize(x)) if dtype == jnp.int8 else Store(x, None)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_write(dtype: Any) -> None:
    """Tokens of two rows to places of any pages; nothing for those past a page's end."""
    store, new = filled(0, dtype), numbers(1, 2, 5, HEADS, SIZE)
    pages = np.array([[2, 2, 0, 0, 0], [1, 1, 1, 1, 1]])
    places = np.array([[22, 23, 0, 1, 2], [7, 8, 9, LENGTH, LENGTH]])
    wanted = content(store)
    for page, place, vector in zip(
        pages.flat, places.flat, new.reshape(-1, HEADS, SIZE), strict=True
    ):
        if place < LENGTH:
            wanted[page, :, place] = vector
    got = content(write(store, new, pages, places))
    np.testing.assert_allclose(got, wanted, atol=0 if dtype == jnp.float32 else 0.02)


def test_copy() -> None:
    cache = Cache((filled(0, jnp.int8),), (filled(1, jnp.float32),))
    copied = jax.jit(Cache.copy)(cache, 2, 0)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(copied), strict=True):
        np.testing.assert_array_equal(new, np.asarray(old)[[2, 1, 2]])


def test_copy_where_layers_share_a_store() -> None:
    cache = Cache((filled(0, jnp.int8, 6),), (filled(1, jnp.float32, 6),), layers=2)
    copied = jax.jit(Cache.copy)(cache, 2, 0)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(copied), strict=True):
        np.testing.assert_array_equal(new, np.asarray(old)[[2, 1, 2, 5, 4, 5]])


# --- attention --------------------------------------------------------------------------------
def naive(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q [T N H] over k and v [S K H], S >= T: the last query sees every key. In float64."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1).astype(np.float64) for x in (k, v))
    scores = np.einsum("TNH,SNH->NTS", q, k) / np.sqrt(q.shape[-1])
    scores[:, ~np.tri(len(q), len(k), len(k) - len(q), dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("NTS,SNH->TNH", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("length", [1, 9, 1024])  # past 512, queries go in blocks
def test_no_cache_attends_causally(heads: int, kv_heads: int, length: int) -> None:
    q = numbers(0, 2, length, heads, SIZE)
    k, v = numbers(1, 2, 2, length, kv_heads, SIZE)
    positions = np.tile(np.arange(length), (2, 1))
    y, _ = jax.jit(NoCache().attend, static_argnums=0)(0, projected(q, k, v, positions))
    for row in range(2):
        assert distance(y[row], naive(q[row], k[row], v[row])) < 2e-6


attend = jax.jit(Cache.attend, static_argnums=1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
@pytest.mark.parametrize("length", [1, 5])
def test_attention_sees_what_lies_before_it_and_no_more(dtype: Any, length: int) -> None:
    """Rows at different places of different pages; what lies past them is left from others."""
    heads, size, starts = CONFIG.heads, CONFIG.head_dim, np.array([3, 17])
    key, value = (filled(seed, dtype, 2, heads, size) for seed in (1, 2))
    cache = Cache((key,), (value,))
    positions = starts[:, None] + np.arange(length, dtype=np.int32)
    q, k, v = numbers(3, 3, 2, length, heads, size)
    together, _ = attend(cache, 0, projected(q, k, v, positions))
    for row, start in enumerate(starts):
        keys, values = (
            np.concatenate([content(old)[row, :, :start].swapaxes(0, 1), new[row]])
            for old, new in ((key, k), (value, v))
        )
        other = cache.select(jnp.array([[row]]), jnp.array([start + length]))
        own = projected(*(x[row : row + 1] for x in (q, k, v, positions)))
        alone, _ = attend(other, 0, own)
        error = distance(alone[0], naive(q[row], keys, values))
        assert error < (2e-6 if dtype == jnp.float32 else 0.02)
        np.testing.assert_array_equal(together[row], alone[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
@pytest.mark.parametrize("table", [None, [[2, 0], [3, 3]]])
def test_layers_of_one_store_are_apart(dtype: Any, table: Any) -> None:
    """By number, traced: each stores and sees what a store of its own would."""
    config = replace(CONFIG, layers=3)
    slots, number = (2, 5) if table is None else (4, LENGTH + 5)
    ends = jnp.full(2, number + 1)
    apart = Cache.empty(config, slots, LENGTH, dtype).select(table and jnp.array(table), ends)
    one = Cache.empty(config, slots, LENGTH, dtype, looped=True).select(apart.table, ends)
    positions = np.full((2, 1), number)
    for layer in (2, 0, 1):
        q, k, v = numbers(layer, 3, 2, 1, CONFIG.heads, CONFIG.head_dim)
        wanted, apart = attend(apart, layer, projected(q, k, v, positions))
        got, one = jax.jit(Cache.attend)(one, layer, projected(q, k, v, positions))
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    for kind in ("keys", "values"):
        stacked = jax.tree.map(lambda *x: np.concatenate(x), *getattr(apart, kind))
        jax.tree.map(np.testing.assert_array_equal, getattr(one, kind)[0], stacked)


def test_padding_and_a_full_page_are_not_written() -> None:
    key = filled(1, jnp.float32, 2, CONFIG.heads, CONFIG.head_dim)
    cache = Cache((key,), (key,)).select(None, jnp.array([4, LENGTH + 2]))
    q = numbers(3, 2, 3, CONFIG.heads, CONFIG.head_dim)
    positions = np.array([[2, 3, 4], [LENGTH - 1, LENGTH, LENGTH + 1]])
    _, after = attend(cache, 0, projected(q, q, q, positions))
    changed = (np.asarray(after.keys[0].data) != key.data).any(axis=(1, 3))
    assert np.argwhere(changed).tolist() == [[0, 2], [0, 3], [1, LENGTH - 1]]
