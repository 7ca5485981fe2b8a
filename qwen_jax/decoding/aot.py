"""The decode functions for devices that are not there: shapes in, a program to compile out.

    params = aot.params(config, jnp.bfloat16, mesh)        # nothing is allocated
    state = aot.state(params, slots=8, length=4096)
    aot.step(params, state, 16).lower().compile().memory_analysis()

The mesh's devices may come from jax.experimental.topologies, which describes a machine with no
more than its compiler at hand. Arrays of a real model and state will do as well.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from qwen_jax.config import Config
from qwen_jax.decoding import decode, prompts
from qwen_jax.decoding.flat_params import Weights, flatten
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.pieces import Piece, pack, rows_of
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import State, state_shardings
from qwen_jax.nn import quant, sharding
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.quant import Format
from qwen_jax.nn.tree import INTEGERS


def params(
    config: Config,
    dtype: Any,
    where: Mesh | jax.Device | None = None,
    formats: Mapping[str, Format] | None = None,
) -> Qwen:
    """A model of ShapeDtypeStructs on a mesh, on one device, or wherever jax would put it.

    formats: of its quantised layers, which lie as `load` would lay them.
    """
    types = {"scales": jnp.float16} | {name: jnp.dtype(name) for name in INTEGERS}
    leaf = lambda shape, axes, kind: jax.ShapeDtypeStruct(shape, types.get(kind, dtype))
    model = quant.build(config, formats or {}, leaf)
    if where is None:
        return model
    if isinstance(where, Mesh):
        model, device = (
            _put(model, sharding.shardings(config, where, formats)),
            where.devices.flat[0],
        )
    else:
        model, device = _put(model, SingleDeviceSharding(where)), where
    return quant.arrange_all(model, device.platform)


def state(
    params: Qwen | Weights,
    slots: int,
    length: int,
    cache_dtype: Any = None,
    pages: int | None = None,
    attention: str | None = None,
    draft_tokens: int = 0,
) -> State:
    """What decode.start would give, as ShapeDtypeStructs beside the weights.

    cache_dtype, pages, attention: see decode.start.
    """
    weights = flatten(params)
    first = weights.leaves[0]
    backend, dtype = decode.choose(weights, length, pages, attention, cache_dtype)
    how = dtype, pages, backend, weights.looped, draft_tokens
    made = jax.eval_shape(lambda: decode._start(weights.structure, slots, length, *how))
    if weights.structure.mesh is not None:
        return _put(made, state_shardings(made, weights.structure.mesh))
    return made if first.sharding is None else _put(made, first.sharding)


def step(
    params: Qwen | Weights, state: State, count: int, blocks: int | None = None
) -> jax.stages.Traced:
    """The program of decode.step; `.lower().compile()` it, or lower it for another platform.

    blocks: how many pages a slot's text may have, where slots share them.
    """
    weights = flatten(params)
    program = decode._step.of(weights)
    slots = len(state.rows.active)
    table = None if blocks is None else np.zeros((slots, blocks), np.int32)
    arguments = _step(weights, state, count, table)
    return program.trace(*arguments, **_widths(weights, state, count))


def prefill(params: Qwen | Weights, state: State, size: int) -> jax.stages.Traced:
    """The program of prompts.prefill for `size` tokens at the start of a prompt."""
    arguments = _prefill(flatten(params), state, size, prompts.tile_of("accelerator", size))
    return prompts._prefill.of(arguments[0]).trace(*arguments)


def prepare(
    params: Qwen | Weights,
    slots: int,
    length: int,
    cache_dtype: Any,
    prompt: int,
    count: int,
    draft_tokens: int = 0,
    attention: str | None = None,
) -> list[Future[Any]]:
    """Have the programs of a first prompt of so many tokens, and of a step, ready when called.

    Returns at once what is done when they are; nothing where `executables` has no folder.
    """
    weights = flatten(params)
    how: dict[str, Any] = {"draft_tokens": draft_tokens, "attention": attention}
    made = state(weights, slots, length, cache_dtype, **how)
    size = min(prompt, prompts.CHUNK)
    tile = prompts.tile_of(weights.platform, size)
    first = prompts._prefill.prepare(*_prefill(weights, made, size, tile))
    widths = _widths(weights, made, count)
    return first + decode._step.prepare(*_step(weights, made, count), after=first, **widths)


def _step(weights: Weights, state: State, count: int, table: Any = None) -> tuple[Any, ...]:
    """What decode._step is called with."""
    return weights, state, np.int32(count), np.bool_(True), None, None, table


def _widths(weights: Weights, state: State, count: int) -> dict[str, Any]:
    return {"width": count, "most": decode.drafts_of(weights, state, None)}


def _prefill(weights: Weights, state: State, size: int, tile: int) -> tuple[Any, ...]:
    """What prompts._prefill is called with."""
    piece = Piece(0, [0] * size, 0, size, SamplingArrays.of(Sampling(), (), 0), 1, last=True)
    slots, vocab = len(state.rows.active), weights.structure.config.vocab
    rows = decode.power(rows_of(size, tile))
    return weights, state, pack([piece], slots, vocab, tile, rows, 1), None


def _put(tree: Any, where: Any) -> Any:
    """The tree with a sharding at every leaf: one for all, or a tree of them."""
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, tree)
    put = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(put, tree, where)
