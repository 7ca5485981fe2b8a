"""The network as training runs it: one scan over stacked blocks, packed rows, no cache.

Decoding wants one array per layer and unrolls; a gradient wants one program for all layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.nn.model import LINEAR, Qwen
from qwen_jax.nn.projected import Projected
from qwen_jax.nn.rope import Where
from qwen_jax.nn.sharding import RULES, gathered
from train.nn import Remat, attention
from train.nn.on_cpu import outer_for, with_outer

Layer = Callable[[Array, Any], tuple[Array, None]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """Attention within rows that hold several samples; stands where a cache stands elsewhere."""

    segments: Array  # [B T]: 1, 2, ... the samples of a row, 0 padding
    mesh: Mesh | None = field(metadata={"static": True})

    def attend(self, layer: int, asked: Projected) -> Any:
        """-> [B T N H], self."""
        return attention.attend(*asked.split(), self.segments, self.mesh), self


def hidden(
    params: Qwen, tokens: Array, positions: Array, segments: Array, remat: Remat, mesh: Mesh | None
) -> Array:
    """tokens, positions and segments [B T] -> [B T D]; params with stacked blocks.

    remat: what the backward pass computes again: no product, all but linear layers', or all.
    """
    # the original trains without its rules for long texts
    config = replace(params.config, ntk_length=None, logn_length=None)
    where = Where.of(config, positions, jnp.zeros(len(tokens), jnp.int32))
    cache, outer = Packed(segments, mesh), outer_for(params.embed.dtype, mesh)

    def layer(x: Array, block: Any) -> tuple[Array, None]:
        with jax.named_scope("block"):
            block = with_outer(gathered(block, config, mesh), outer)
            x, _ = block(spread(x, mesh), where, cache, 0, config)
        return x, None

    x, _ = jax.lax.scan(_kept(layer, remat), params.embed[tokens], params.blocks)
    return params.norm(spread(x, mesh))


def _kept(layer: Layer, remat: Remat) -> Layer:
    keep = jax.checkpoint_policies
    linear = keep.save_only_these_names(LINEAR)
    # elementwise work is never kept: memory takes longer than doing it again
    policy = {
        "none": keep.save_from_both_policies(linear, attention.kept),
        "dots": linear,
        "full": keep.nothing_saveable,
    }[remat]
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)


def spread(x: Array, mesh: Mesh | None) -> Array:
    """Rows [B ...] over the devices: weights are gathered to them, not they to the weights."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(RULES["slot"])))


# --- stacking -----------------------------------------------------------------------------------
def stack(params: Qwen) -> Qwen:
    """One Block whose arrays have the layers in front; the arrays of `params` are used up."""
    structures = {jax.tree.structure(block) for block in params.blocks}
    if len(structures) > 1:
        raise ValueError("the layers differ (an adapter of several ranks?); only equal ones train")
    (structure,) = structures
    columns = zip(*map(jax.tree.leaves, params.blocks), strict=True)
    return replace(params, blocks=jax.tree.unflatten(structure, [_joined(c) for c in columns]))


def unstack(params: Qwen) -> Qwen:
    """The network that decoding and checkpoints know."""
    cut = lambda i: jax.tree.map(lambda x: x[i], params.blocks)
    return replace(params, blocks=tuple(cut(i) for i in range(params.config.layers)))


def _joined(arrays: tuple[Array, ...]) -> Array:
    """[L ...], sharded as its parts are; they are freed, so that memory holds one leaf twice."""
    sharding = stacked(arrays[0].sharding)
    whole = jax.jit(lambda *xs: jnp.stack(xs), out_shardings=sharding)(*arrays)
    whole.block_until_ready()
    for array in arrays:
        array.delete()
    return whole


def stacked(sharding: Any) -> Any:
    """The sharding of a leaf with its layers in front."""
    return (
        NamedSharding(sharding.mesh, P(None, *sharding.spec))
        if isinstance(sharding, NamedSharding)
        else sharding
    )
