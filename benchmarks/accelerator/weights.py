"""Random weights on the device, clocks, and whether something fits."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.kept import SkippedError
from qwen_jax import memory
from qwen_jax.config import Config
from qwen_jax.files.sizes import size
from qwen_jax.nn import quant
from qwen_jax.nn.model import Qwen
from qwen_jax.plan.estimate import PRECISIONS

_SCALES = {8: 0.02 / 64, 4: 0.02 / 4}  # of codes, by their bits: weights of 0.02


@functools.lru_cache(maxsize=1)
def network(config: Config, precision: str) -> Qwen:
    """In bfloat16, or its blocks in int8 or int4; the last one is kept."""
    plan = PRECISIONS[precision]
    formats = quant.plan(config, *plan) if plan else {}
    kinds = {"int8": jnp.int8, "int4": jnp.int4, "scales": jnp.float16}
    shapes = lambda shape, axes, kind: jax.ShapeDtypeStruct(shape, kinds.get(kind, jnp.bfloat16))
    expect_room(bytes_of(quant.build(config, formats, shapes)))
    keys = map(functools.partial(jax.random.fold_in, jax.random.key(0)), range(1 << 20))

    def leaf(shape: tuple[int, ...], axes: Any, kind: str) -> jax.Array:
        if kind in ("int8", "int4"):
            most = 8 if kind == "int4" else 128
            return jax.random.randint(next(keys), shape, -most, most, jnp.int8).astype(kinds[kind])
        if kind == "scales":
            return jnp.full(shape, _SCALES[plan[0]] if plan else 1, jnp.float16)
        if kind in ("ones", "zeros"):
            return jnp.full(shape, float(kind == "ones"), jnp.bfloat16)
        return _normal(next(keys), shape)

    made = quant.build(config, formats, leaf)
    return quant.arrange_all(made, jax.devices()[0].platform)


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return 0.02 * jax.random.normal(key, shape, jnp.bfloat16)


def bytes_of(tree: Any) -> int:
    return sum(memory.by_dtype(jax.tree.leaves(tree)).values())


def bytes_read(params: Qwen) -> int:
    """Of the weights, in a step: all but an embedding of which it looks up a few rows."""
    return bytes_of(params) - (0 if params.head is None else params.embed.nbytes)


def expect_room(needed: int) -> None:
    """Raises SkippedError where a device has no room for so many bytes more."""
    free, _ = memory.free(jax.devices())
    if free is not None and needed > free:
        raise SkippedError(f"takes {size(needed)}, the device has {size(free)} free")


def seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    """Of each call, after a first one that compiles."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        found.append(round(time.perf_counter() - began, 6))
    return found[1:]
