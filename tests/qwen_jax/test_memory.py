"""Bytes of weights, caches and peaks."""

import jax
import jax.numpy as jnp

from qwen_jax import lowering, memory, quant
from qwen_jax.config import Config
from tests.qwen_jax.networks import QWEN2

CONFIG = Config.from_hf(QWEN2)


def test_weights():
    plain = lowering.params(CONFIG, jnp.bfloat16)
    sizes = [leaf.size for leaf in jax.tree.leaves(plain)]
    assert memory.by_dtype(jax.tree.leaves(plain)) == {"bfloat16": 2 * sum(sizes)}
    formats = quant.plan(CONFIG, 4, 16, zeros=True)
    small = lowering.params(CONFIG, jnp.bfloat16, None, formats)
    codes = sum(x.codes.size for _, x in quant.layers(small))
    found = memory.by_dtype(jax.tree.leaves(small))
    assert found["int4"] == codes // 2
    assert found["float16"] == 2 * found["int8"] == 2 * codes // 16
    assert found["bfloat16"] == 2 * (sum(sizes) - codes)


def test_cache_is_what_decoding_allocates():
    params = lowering.params(CONFIG, jnp.bfloat16)
    for dtype in ("float32", "bfloat16", "int8"):
        state = lowering.state(params, slots=3, length=64, cache_dtype=dtype)
        size = sum(memory.by_dtype(jax.tree.leaves(state.cache)).values())
        assert memory.cache(CONFIG, dtype) * 3 * 64 == size


def test_summary():
    line = memory.summary({"int4": 3_470_000_000, "bfloat16": 250_000_000}, 524_288, 5_100_000_000)
    assert line == (
        "weights 3.72 GB (bfloat16 250 MB, int4 3.47 GB), cache 0.524 MB a token, "
        "peak 5.10 GB on a device"
    )
