"""A network where kernels pay: for few rows norms, gate with up in one; for all, int4 layers.

Made inside a program, of the arrays that are there: nothing is held twice, and what lies on a disk,
trains or takes adapters knows nothing of it. Layers of other kinds stay as they are.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec as P

from qwen_jax.nn import sharding
from qwen_jax.nn.backends import Backend
from qwen_jax.nn.model import MLP, Linear, Qwen, RMSNorm
from qwen_jax.nn.quant import QuantLinear
from qwen_jax.nn.tree import map_layers

_PLAIN = ("q_norm", "k_norm")  # of heads: attention's own


def fused(model: Qwen, backend: Backend) -> Qwen:
    """The network with what the kernels of this backend do; as it is where it has none."""
    if backend.name == "xla":
        return model

    def norm(name: str, x: RMSNorm) -> RMSNorm:
        return x if name.endswith(_PLAIN) else KernelNorm(x.scale, x.eps, backend)

    def gate(_: str, x: MLP) -> MLP:
        kinds = {_gate(layer) for layer in (x.gate, x.up)}
        fits = len(kinds) == 1 and None not in kinds
        return GatedMLP(x.gate, x.up, x.down, backend) if fits else x

    def integers(_: str, x: QuantLinear) -> QuantLinear:
        fields = x.codes, x.scales, x.zeros, x.order, x.bias, x.bits
        return KernelQuant(*fields, backend) if _int4(backend).fits(x.codes) else x

    if backend.mesh is None:  # else XLA shares out products of integers
        model = map_layers(integers, model, QuantLinear)
    if backend.name != "triton":  # XLA's TPU does the rest in few operations
        return model
    return map_layers(gate, map_layers(norm, model, RMSNorm), MLP)


@nnx.dataclass
class KernelNorm(RMSNorm):
    backend: Backend = nnx.static()

    def __call__(self, x: Array) -> Array:
        return self._run(x, None)[1] if _few(x, self.backend) else RMSNorm.__call__(self, x)

    def after(self, x: Array, y: Array) -> tuple[Array, Array]:
        return self._run(x, y) if _few(x, self.backend) else RMSNorm.after(self, x, y)

    def _run(self, x: Array, y: Array | None) -> tuple[Array, Array]:
        from qwen_jax.nn.kernels import layers

        def run(x: Array, y: Array | None, scale: Array) -> tuple[Array, Array]:
            rows = lambda x: x.reshape(-1, x.shape[-1])
            how: Any = {"eps": self.eps, "interpret": self.backend.interpret}
            found = layers.normed(rows(x), None if y is None else rows(y), scale, **how)
            return found[0].reshape(x.shape), found[1].reshape(x.shape)

        rows = _rows(x, self.backend)
        ins = rows, None if y is None else rows, P()
        found: tuple[Array, Array] = _split(run, self.backend, ins, (rows, rows))(x, y, self.scale)
        return found


@nnx.dataclass
class GatedMLP(MLP):
    backend: Backend = nnx.static()

    def hidden(self, x: Array) -> Array:
        from qwen_jax.nn.kernels import layers

        if not (_few(x, self.backend) and layers.fits(x.shape[-1])):
            return MLP.hidden(self, x)

        def run(x: Array, *weights: Any) -> Array:
            rows = x.reshape(-1, x.shape[-1])
            y = layers.gated(rows, *weights, interpret=self.backend.interpret)
            return y.reshape(*x.shape[:-1], -1)

        pair: list[Any] = [self.gate, self.up]
        if _gate(self.gate) is Linear:
            weights: list[Any] = [layer.kernel for layer in pair]
        else:
            weights = [layer.codes for layer in pair]
            weights.append(tuple(layer.scales for layer in pair))
        rows, mesh = _rows(x, self.backend), self.backend.mesh
        parts = P() if mesh is None else sharding.spec(mesh, ("mlp",), weights[0].shape[:1])
        ins = (rows, *[parts] * len(weights))
        y: Array = _split(run, self.backend, ins, P(*rows, None, *parts))(x, *weights)
        return y


@nnx.dataclass
class KernelQuant(QuantLinear):
    """Of int4, on one device."""

    backend: Backend = nnx.static()

    def __call__(self, x: Array) -> Array:
        kernel = _int4(self.backend)
        if x.size // x.shape[-1] > kernel.MOST:
            return QuantLinear.__call__(self, x)
        rows = x if self.order is None else jnp.take(x, self.order, axis=-1)
        rows = rows.reshape(-1, x.shape[-1])
        how = {"interpret": self.backend.interpret}
        y: Array = kernel.product(rows, self.codes, self.scales, self.zeros, self.bias, **how)
        return y.reshape(*x.shape[:-1], -1)


def _gate(layer: Any) -> type | None:
    """What a gate, or what is beside it, is to the kernel; None: nothing that it takes."""
    if type(layer) is Linear and layer.bias is None:
        return Linear
    if type(layer) is not QuantLinear or layer.codes.dtype != jnp.int8 or layer.codes.ndim != 2:
        return None
    plain = layer.zeros is None and layer.order is None and layer.bias is None
    return QuantLinear if plain and layer.scales.shape[1] == 1 else None


def _int4(backend: Backend) -> Any:
    """The kernels of products with int4."""
    if backend.name == "triton":
        from qwen_jax.nn.kernels import triton_int4

        return triton_int4
    from qwen_jax.nn.kernels import mosaic_int4

    return mosaic_int4


def _few(x: Array, backend: Backend) -> bool:
    """Whether a device has so few rows of x [B T D] that a kernel takes them."""
    from qwen_jax.nn.kernels.layers import MOST

    parts = [name for names in _rows(x, backend) if names for name in names]
    ways = math.prod(backend.mesh.shape[name] for name in parts) if backend.mesh else 1
    return x.shape[0] // ways * x.shape[1] <= MOST


def _rows(x: Array, backend: Backend) -> P:
    """How devices share the rows of x [B T D]."""
    if backend.mesh is None:
        return P()
    return sharding.spec(backend.mesh, ("slot",), x.shape[:1])


def _split(run: Any, backend: Backend, ins: Any, outs: Any) -> Any:
    """`run` on each device's part."""
    if backend.mesh is None:
        return run
    return functools.partial(
        jax.shard_map, mesh=backend.mesh, in_specs=ins, out_specs=outs, check_vma=False
    )(run)
