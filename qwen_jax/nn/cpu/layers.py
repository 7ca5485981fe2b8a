"""A network whose products run on a CPU as `registered` makes them, where there are such ones.

Made inside a program, of the arrays that are there, as nn.fused's. A layer of another shape or type
keeps XLA's product, for any number of rows, so that a row's bits stay the same.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from qwen_jax.nn import quant_matmul
from qwen_jax.nn.cpu.kinds import OUTPUTS, Kind, available
from qwen_jax.nn.model import Linear, LinearLayer, Qwen, RMSNorm
from qwen_jax.nn.quant import QuantLinear
from qwen_jax.nn.tree import map_layers, named_layers

_FLOATS = ("float32", "bfloat16")


def hosted(model: Qwen) -> Qwen:
    """The network, or a part of one, for a CPU that has it alone; what it calls is registered."""
    if not available():
        return model
    if model.head is None and model.embed is not None:
        model = replace(model, head=Linear(model.embed, None))
    norms: Any = named_layers(model, RMSNorm).values()
    x = str(next(iter(norms)).scale.dtype)

    def floats(_: str, layer: Linear) -> Linear:
        kind = floats_kind(layer.kernel) if type(layer) is Linear else None
        return layer if kind is None else HostLinear(layer.kernel, layer.bias, _registered(kind))

    def integers(_: str, layer: QuantLinear) -> QuantLinear:
        kind = integers_kind(x, layer.codes, layer.scales, layer.zeros)
        fields = layer.codes, layer.scales, layer.zeros, layer.order, layer.bias, layer.bits
        return layer if kind is None else HostQuant(*fields, _registered(kind))

    return map_layers(integers, map_layers(floats, model, Linear), QuantLinear)


def all_hosted(model: Qwen) -> bool:
    """Whether every product with weights has the same bits for one row as for any other number."""
    layers = named_layers(hosted(model), LinearLayer).values()
    return all(isinstance(layer, HostLinear | HostQuant) for layer in layers)


def floats_kind(kernel: Array) -> Kind | None:
    """The product with such weights [out in]; None: there is none."""
    dtype, (out, inputs) = str(kernel.dtype), kernel.shape
    if dtype not in _FLOATS or kernel.size == 0 or out % OUTPUTS or inputs % _width(dtype):
        return None
    return Kind(dtype, dtype)


def integers_kind(x: str, codes: Array, scales: Array, zeros: Array | None) -> Kind | None:
    """The product of x of such a type with codes in whole rows, int8, or in halves, int4."""
    if x not in _FLOATS or scales.dtype != jnp.float16 or not quant_matmul.by_rows(codes):
        return None
    halves = codes.dtype == jnp.uint8 and codes.ndim == 3
    if (not halves and codes.dtype != jnp.int8) or codes.size == 0:
        return None
    if zeros is not None and zeros.dtype != jnp.int8:
        return None
    groups = scales.shape[1]
    width, size = _width(x), codes.size * (1 + halves) // scales.size
    short = halves and size == width
    step = width * (1 + (halves and not short))
    if codes.shape[0] % OUTPUTS or size % step:
        return None
    return Kind(x, "int4" if halves else "int8", groups > 1, zeros is not None, short)


def _width(x: str) -> int:
    """How many inputs one step of x takes."""
    from qwen_jax.nn.cpu.registered import processor
    from qwen_jax.nn.cpu.weights import arithmetic

    return arithmetic(x, processor()).width


def _registered(kind: Kind) -> Kind:
    from qwen_jax.nn.cpu.registered import register

    register(kind)
    return kind


@nnx.dataclass
class HostLinear(Linear):
    kind: Kind = nnx.static()

    def float32(self, x: Array) -> Array:
        if x.dtype != self.kind.x:
            return Linear.float32(self, x)
        y = _product(self.kind, x, self.kernel)
        return y if self.bias is None else y + self.bias


@nnx.dataclass
class HostQuant(QuantLinear):
    kind: Kind = nnx.static()

    def float32(self, x: Array) -> Array:
        if x.dtype != self.kind.x:
            return QuantLinear.float32(self, x)
        if self.order is not None:
            x = jnp.take(x, self.order, axis=-1)
        zeros = () if self.zeros is None else (self.zeros,)
        y = _product(self.kind, x, self.codes, self.scales, *zeros)
        return y if self.bias is None else y + self.bias


def _product(kind: Kind, x: Array, weights: Array, *more: Array) -> Array:
    """x [... in] -> float32 [... out]."""
    rows = x.reshape(-1, x.shape[-1])
    assert weights.size * (1 + (kind.weights == "int4")) == len(weights) * rows.shape[1]
    made = jax.ShapeDtypeStruct((rows.shape[0], weights.shape[0]), jnp.float32)
    y = jax.ffi.ffi_call(kind.name, made)(rows, weights, *more)
    return y.reshape(*x.shape[:-1], len(weights))
