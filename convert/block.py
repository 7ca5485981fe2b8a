"""A block of the network while it is quantised: what its layers see, and what they lose."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qwen_jax.config import Config
from qwen_jax.nn import model
from qwen_jax.nn.kv_cache import NoCache
from qwen_jax.nn.model import Block
from qwen_jax.nn.rope import Where
from qwen_jax.nn.sums import matmul

# layers of a block that see the same inputs, in the order in which those are known
STAGES = (("attn.qkv",), ("attn.out",), ("mlp.gate", "mlp.up"), ("mlp.down",))  # see stage_inputs


def setting(x: Array, lengths: Array, config: Config) -> tuple[Where, NoCache, int, Config]:
    """What a block is called with beside a sheet; nothing attends to what is padded behind."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    return Where.of(config, positions, lengths), NoCache(), 0, config


@functools.partial(jax.jit, static_argnames="config")
def run(block: Block, x: Array, lengths: Array, config: Config) -> Array:
    """A block's output for a sheet [B T D]."""
    return block(x, *setting(x, lengths, config))[0]


@functools.partial(jax.jit, static_argnames=("stage", "config"))
def moments(block: Block, x: Array, lengths: Array, stage: int, config: Config) -> Array:
    """The sum of x xᵀ over what the layers of a stage get, float32 [in in]."""
    inputs = stage_inputs(block, x, setting(x, lengths, config))
    seen = next(itertools.islice(inputs, stage, None))
    real = jnp.arange(x.shape[1]) < lengths[:, None]
    seen = jnp.where(real[..., None], seen, 0).reshape(-1, seen.shape[-1])
    return jnp.matmul(seen.T, seen, precision="highest")


def stage_inputs(
    block: Block, x: Array, setting: tuple[Where, NoCache, int, Config]
) -> Iterator[Array]:
    """What the layers of each stage get when a block is called."""
    attn, mlp = block.attn, block.mlp
    y = block.attn_norm(x)
    yield y
    y, _ = attn.mix(attn.qkv(y), *setting)
    yield y
    y = block.mlp_norm(x + attn.out(y))
    yield y
    yield mlp.hidden(y)


@jax.jit
def lost(kernel: Array, made: Array, moments: Array | None) -> Array:
    """The share of the outputs' energy that is lost; of the weights' without calibration."""
    onto = lambda w: w if moments is None else jnp.matmul(w, moments, precision="highest")
    energy = lambda w: jnp.sum(onto(w) * w)
    return energy(kernel - made) / jnp.maximum(energy(kernel), 1e-30)


@jax.jit
def judge(norm: model.RMSNorm, head: Array, x: Array, ids: Array, judged: Array) -> Array:
    """The sum of -log p over the tokens of a sheet that are judged, a row at a time."""

    def row(one: tuple[Array, Array, Array]) -> Array:
        x, ids, judged = one
        scores = jax.nn.log_softmax(matmul(norm(x), head)[:-1])
        found = jnp.take_along_axis(scores, ids[1:, None], axis=1)[:, 0]
        return -jnp.sum(jnp.where(judged[1:], found, 0))

    return jax.lax.map(row, (x, ids, judged)).sum()


def get(block: Block, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), block)


def put(block: Block, name: str, layer: Any) -> None:
    parent, _, field = name.rpartition(".")
    setattr(get(block, parent), field, layer)
