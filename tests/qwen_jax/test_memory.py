"""Bytes of weights, caches and peaks."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from qwen_jax import memory
from qwen_jax.config import Config
from qwen_jax.decoding import aot
from qwen_jax.nn import quant
from qwen_jax.nn.tree import named_layers
from tests.qwen_jax.networks import QWEN2

CONFIG = Config.from_hf(QWEN2)
STATUS = Path("/proc/self/status")


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


only_linux = pytest.mark.skipif(not STATUS.exists(), reason="only Linux says what it holds")


def held() -> int:
    lines = STATUS.read_text().splitlines()
    return 1024 * int(next(line for line in lines if "RssAnon" in line).split()[1])


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


@only_linux
def test_large_blocks_are_given_back_at_once() -> None:
    """Though small ones that stay lie between them, and larger ones were freed before.

    In a process that nobody else's threads grow.
    """
    subprocess.run([sys.executable, "-c", LARGE], check=True, timeout=300)


LARGE = """
from qwen_jax import memory
from tests.qwen_jax.test_memory import held
memory.give_back_large()
bytearray(b"x") * 30_000_000  # freed at once: by itself the library learns from it
before, large, small = held(), [], []
for number in range(100):
    large.append(b"x" * (2_000_000 + number))
    small.append(bytes(600))
del large
assert held() < before + 20_000_000
assert len(small) == 100
"""
