"""Bytes of weights, caches and peaks."""

import jax
import jax.numpy as jnp

from qwen_jax import memory
from qwen_jax.config import Config
from qwen_jax.decoding import aot
from qwen_jax.nn import quant
from qwen_jax.nn.tree import named_layers
from tests.growth import held, only_linux
from tests.qwen_jax.networks import QWEN2

CONFIG = Config.from_hf(QWEN2)


def test_weights() -> None:
    plain = aot.params(CONFIG, jnp.bfloat16)
    sizes = [leaf.size for leaf in jax.tree.leaves(plain)]
    assert memory.by_dtype(jax.tree.leaves(plain)) == {"bfloat16": 2 * sum(sizes)}
    formats = quant.plan(CONFIG, 4, 16, zeros=True)
    small = aot.params(CONFIG, jnp.bfloat16, None, formats)
    codes = sum(x.codes.size for x in named_layers(small, quant.QuantLinear).values())
    found = memory.by_dtype(jax.tree.leaves(small))
    assert found["int4"] == codes // 2
    assert found["float16"] == 2 * found["int8"] == 2 * codes // 16
    assert found["bfloat16"] == 2 * (sum(sizes) - codes)


def test_cache_is_what_decoding_allocates() -> None:
    params = aot.params(CONFIG, jnp.bfloat16)
    for dtype in ("float32", "bfloat16", "int8"):
        state = aot.state(params, slots=3, length=64, cache_dtype=dtype)
        size = sum(memory.by_dtype(jax.tree.leaves(state.cache)).values())
        assert memory.cache(CONFIG, dtype) * 3 * 64 == size


def test_summary() -> None:
    weights = {"int4": 3_470_000_000, "bfloat16": 250_000_000}
    caches = memory.caches(CONFIG, "bfloat16", "float32", "bfloat16")
    assert memory.summary(weights, caches, 5_100_000_000) == (
        "weights 3.72 GB (250 MB bfloat16, 3.47 GB int4), "
        "cache of a token 64 B bfloat16 or 128 B float32, peak 5.1 GB on a device"
    )


@only_linux
def test_what_is_freed_is_given_back() -> None:
    """Small pieces below one that stays, which the C library would keep."""
    pieces = [bytes(2000) for _ in range(100_000)]
    last = pieces[-1]
    del pieces
    before = held()
    memory.trim()
    assert held() < before - 100_000_000
    assert last == bytes(2000)
