"""A layer's attention for a chunk of a prompt, compiled alone, and what it holds for itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.config import Config
from qwen_jax.decoding.prompts import CHUNK, tile_of
from qwen_jax.nn.kv_cache import Cache


def lower(config: Config, cache: Cache) -> jax.stages.Lowered:
    """Of queries as a product gives them, over keys and values that are stored."""
    tile = tile_of("accelerator", CHUNK)
    rows, width = CHUNK // tile, config.heads * config.head_dim
    key, value = cache.keys[0], cache.values[0]

    def shape(kind: Any, *shape: int, axis: str | None = None) -> jax.ShapeDtypeStruct:
        place = key.data.sharding
        if isinstance(place, NamedSharding):
            place = NamedSharding(place.mesh, P(*[None] * (len(shape) - 1), axis))
        return jax.ShapeDtypeStruct(shape, kind, sharding=place)

    def attend(query: Any, *rest: Any) -> Any:
        heads = query.reshape(rows, tile, config.kv_heads, -1, config.head_dim)
        over = cache.backend.over(rest[2])
        assert over is not None
        return over(heads, *rest).reshape(query.shape)

    query = shape(jnp.bfloat16, rows, tile, width, axis="tensor")
    table = shape(jnp.int32, rows, key.data.shape[0])
    places = table, shape(jnp.int32, rows, tile), shape(jnp.int32, rows)
    return jax.jit(attend).lower(query, key, value, *places)
