"""A network where kernels pay: norms, gate with up in one, and layers of integers in groups.

Made inside a program, of the arrays that are there: nothing is held twice, and what lies on a disk,
trains or takes adapters knows nothing of it. Layers of other kinds stay as they are.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec as P

from qwen_jax.nn.backends import Backend
from qwen_jax.nn.model import MLP, Linear, Qwen, RMSNorm
from qwen_jax.nn.quant import QuantLinear
from qwen_jax.nn.quant_matmul import by_rows
from qwen_jax.nn.sharding import RULES, cuts_inputs, ways
from qwen_jax.nn.tree import map_layers

_PLAIN = ("q_norm", "k_norm")  # of heads: attention's own


def fused(model: Qwen, backend: Backend) -> Qwen:
    """The network with what the kernels of this backend do; as it is where it has none."""
    if not backend.has_kernels:
        return model
    mesh = backend.mesh

    def norm(name: str, x: RMSNorm) -> RMSNorm:
        return x if name.endswith(_PLAIN) else KernelNorm(x.scale, x.eps, backend)

    def gate(_: str, x: MLP) -> MLP:
        kinds = {_gate(layer) for layer in (x.gate, x.up)}
        fits = len(kinds) == 1 and None not in kinds
        return GatedMLP(x.gate, x.up, x.down, backend) if fits else x

    def integers(name: str, x: QuantLinear) -> QuantLinear:
        fields = x.codes, x.scales, x.zeros, x.order, x.bias, x.bits
        cut = P(*backend.cut(("mlp",), (x.outputs,)), None)
        if mesh is not None and cuts_inputs(name, x, model.config, mesh):
            cut = P(None, RULES["mlp"])
        return KernelQuant(*fields, backend, cut) if _quantised(backend).fits(x.codes) else x

    model = map_layers(integers, model, QuantLinear)
    if backend.name != "triton":  # XLA's TPU does the rest in few operations
        return model
    return map_layers(gate, map_layers(norm, model, RMSNorm), MLP)


@nnx.dataclass
class KernelNorm(RMSNorm):
    backend: Backend = nnx.static()

    def __call__(self, x: Array) -> Array:
        return self._run(x, None)[1] if self._fits(x) else RMSNorm.__call__(self, x)

    def after(self, x: Array, y: Array) -> tuple[Array, Array]:
        return self._run(x, y) if self._fits(x) else RMSNorm.after(self, x, y)

    def _fits(self, x: Array) -> bool:
        from qwen_jax.nn.kernels import layers

        return _few(x, self.backend, layers.MOST)

    def _run(self, x: Array, y: Array | None) -> tuple[Array, Array]:
        from qwen_jax.nn.kernels import layers

        def run(x: Array, y: Array | None, scale: Array) -> tuple[Array, Array]:
            rows = lambda x: x.reshape(-1, x.shape[-1])
            how: Any = {"eps": self.eps, "interpret": self.backend.interpret}
            found = layers.normed(rows(x), None if y is None else rows(y), scale, **how)
            return found[0].reshape(x.shape), found[1].reshape(x.shape)

        rows = self.backend.cut(("slot",), x.shape[:1])
        run_all = self.backend.split(run, (rows, rows, P()), (rows, rows))
        found: tuple[Array, Array] = run_all(x, y, self.scale)
        return found


@nnx.dataclass
class GatedMLP(MLP):
    backend: Backend = nnx.static()

    def hidden(self, x: Array) -> Array:
        from qwen_jax.nn.kernels import layers

        if not (_few(x, self.backend, layers.MOST) and layers.fits(x.shape[-1])):
            if _gate(self.gate) is Linear:
                return MLP.hidden(self, x)
            # or XLA has float32 sums of both in memory at once, to scale them together
            gate = jax.lax.optimization_barrier(jax.nn.silu(self.gate(x)))
            return gate * self.up(x)

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
        rows = self.backend.cut(("slot",), x.shape[:1])
        own = self.backend.cut(("mlp",), weights[0].shape[:1])
        ins = rows, *[own] * len(weights)
        y: Array = self.backend.split(run, ins, P(*rows, None, *own))(x, *weights)
        return y


@nnx.dataclass
class KernelQuant(QuantLinear):
    """Of integers in groups. Where a mesh cuts its inputs, every device multiplies its own."""

    backend: Backend = nnx.static()
    cut: P = nnx.static()  # what `tensor` cuts: outputs, inputs

    def __call__(self, x: Array) -> Array:
        return self._product(x, x.dtype)

    def float32(self, x: Array) -> Array:
        return self._product(x, jnp.float32)

    def _product(self, x: Array, dtype: Any) -> Array:
        kernel = _quantised(self.backend)
        if not _few(x, self.backend, kernel.MOST):
            return QuantLinear.float32(self, x).astype(dtype)
        if self.order is not None:
            x = jnp.take(x, self.order, axis=-1)
        cut = self.cut if by_rows(self.codes) else P(*reversed(self.cut))
        outputs, inputs = self.cut
        alone = inputs is None
        how = {"dtype": dtype if alone else jnp.float32, "interpret": self.backend.interpret}

        def run(x: Array, *weights: Any) -> Array:
            y = kernel.product(x.reshape(-1, x.shape[-1]), *weights, **how)
            y = y.reshape(*x.shape[:-1], -1)
            return y if alone else jax.lax.psum(y, inputs)

        rows = self.backend.cut(("slot", *[None] * (x.ndim - 2)), x.shape[:-1])
        ins = P(*rows, inputs), cut, cut, cut, P(outputs)
        weights = self.codes, self.scales, self.zeros, self.bias if alone else None
        y: Array = self.backend.split(run, ins, P(*rows, outputs))(x, *weights)
        return (y if alone or self.bias is None else y + self.bias).astype(dtype)


def _gate(layer: Any) -> type | None:
    """What a gate, or what is beside it, is to the kernel; None: nothing that it takes."""
    if type(layer) is Linear and layer.bias is None:
        return Linear
    if type(layer) is not QuantLinear or layer.codes.dtype != jnp.int8 or layer.codes.ndim != 2:
        return None
    plain = layer.zeros is None and layer.order is None and layer.bias is None
    return QuantLinear if plain and layer.scales.shape[1] == 1 else None


def _quantised(backend: Backend) -> Any:
    """The kernels of products with integers in groups."""
    if backend.name == "triton":
        from qwen_jax.nn.kernels import triton_int4

        return triton_int4
    from qwen_jax.nn.kernels import mosaic_quant

    return mosaic_quant


def _few(x: Array, backend: Backend, most: int) -> bool:
    """Whether a device has so few rows of x [B ... D] that a kernel takes them."""
    (names,) = backend.cut(("slot",), x.shape[:1])
    parts = 1 if names is None or backend.mesh is None else ways(backend.mesh, "slot")
    return x.size // x.shape[-1] // parts <= most
