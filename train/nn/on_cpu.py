"""Gradients of kernels where a CPU multiplies bf16.

XLA sums over the rows of two bf16 arrays at a quarter (with tiles) or half (without) of the speed
of its other products, whichever of them is turned before. nn.cpu's products take both turned.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from qwen_jax.nn.cpu.kinds import available
from qwen_jax.nn.cpu.layers import floats_kind, multiply
from qwen_jax.nn.model import Linear
from qwen_jax.nn.sums import Outer, matmul, outer
from qwen_jax.nn.tree import map_layers

_ROWS = 32  # that one step of a product takes


def outer_for(dtype: Any, mesh: Mesh | None) -> Outer:
    """What computes the gradients of kernels of such a type here."""
    if mesh is not None or dtype != jnp.bfloat16 or not available():
        return outer
    from qwen_jax.nn.cpu.registered import processor

    found = processor()
    return _where_a_cpu_runs if found.tiles or found.pairs else outer


def with_outer(block: Any, outer: Outer) -> Any:
    """The block, whose linear layers compute the gradients of their kernels so."""
    return map_layers(lambda _, layer: _Linear(layer.kernel, layer.bias, outer), block, Linear)


@nnx.dataclass
class _Linear(Linear):
    outer: Outer = nnx.static()

    def float32(self, x: Array) -> Array:
        y = matmul(x, self.kernel, self.outer)
        return y if self.bias is None else y + self.bias


def _where_a_cpu_runs(g: Array, x: Array) -> Array:
    """A step may be compiled here for other devices."""
    return jax.lax.platform_dependent(g, x, cpu=_turned, default=outer)


def _turned(g: Array, x: Array) -> Array:
    """`outer` of bf16; rows of zeros add nothing."""
    g, x = (jnp.pad(a, ((0, -len(a) % _ROWS), (0, 0))).T for a in (g, x))
    kind = floats_kind(x)
    return outer(g.T, x.T) if kind is None else multiply(kind, g, x)
