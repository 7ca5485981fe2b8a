"""A network whose products run on a CPU as `registered` makes them, where there are such ones.

Made inside a program, of the arrays that are there, as nn.fused's. A layer of another shape or type
keeps XLA's product, for any number of rows, so that a row's bits stay the same. Blocks that are all
alike become one that a loop goes through: a program is as long as one block, not as all of them.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from qwen_jax.nn import quant_matmul
from qwen_jax.nn.cpu.kinds import OUTPUTS, Kind, available
from qwen_jax.nn.model import Attended, AttentionCache, Linear, LinearLayer, Qwen, RMSNorm
from qwen_jax.nn.quant import QuantLinear
from qwen_jax.nn.rope import Where
from qwen_jax.nn.tree import map_layers, named_layers

_FLOATS = ("float32", "bfloat16")


def hosted(model: Qwen) -> Qwen:
    """The network for a CPU that has it alone; what it calls is registered."""
    if not available():
        return model
    if model.head is None:
        model = replace(model, head=Linear(model.embed, None))
    norms: Any = named_layers(model, RMSNorm).values()
    x = str(next(iter(norms)).scale.dtype)

    def floats(_: str, layer: Linear) -> LinearLayer:
        kind = floats_kind(layer.kernel)
        return layer if kind is None else _hosted(kind, (layer.kernel,), None, layer.bias)

    def integers(_: str, layer: QuantLinear) -> LinearLayer:
        kind = integers_kind(x, layer.codes, layer.scales, layer.zeros)
        zeros = () if layer.zeros is None else (layer.zeros,)
        arrays = layer.codes, layer.scales, *zeros
        return layer if kind is None else _hosted(kind, arrays, layer.order, layer.bias)

    return map_layers(integers, map_layers(floats, model, Linear), QuantLinear)


def all_hosted(made: Qwen) -> bool:
    """Whether every product with weights has the same bits for one row as for any other number.

    made: a network as `hosted` gives it.
    """
    return all(isinstance(layer, HostLinear) for layer in named_layers(made, LinearLayer).values())


def can_loop(made: Qwen) -> bool:
    """Whether a network as `hosted` gives it has blocks that are all alike, adapters included."""
    kinds = {
        (jax.tree.structure(block), *map(_kind, jax.tree.leaves(block))) for block in made.blocks
    }
    xlas = [named_layers(made.blocks, kind) for kind in (Linear, QuantLinear)]
    return len(kinds) == 1 and not any(xlas)


def looped(made: Qwen) -> "Looped":
    """The same network with one block for all, where it can."""

    def together(*leaves: Any) -> Any:
        if isinstance(leaves[0], Operand):
            return Operand(tuple(leaf.arrays[0] for leaf in leaves))
        return jnp.stack(leaves)

    block = jax.tree.map(together, *made.blocks, is_leaf=_is_operand)
    own = {field.name: getattr(made, field.name) for field in fields(made)}
    return Looped(**own | {"blocks": (block,)})


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
    size = codes.size * (1 + halves) // scales.size
    short = _short(x, size) if halves else False
    if short is None or codes.shape[0] % OUTPUTS or (not halves and size % _width(x)):
        return None
    return Kind(x, "int4" if halves else "int8", groups > 1, zeros is not None, short)


def multiply(kind: Kind, x: Array, *arrays: Array, number: Array | None = None) -> Array:
    """x [R in] with the weights [out in] of one of some layers -> float32 [R out].

    arrays: the weights of all layers, then perhaps all their scales, and zeros. number: of the one.
    """
    from qwen_jax.nn.cpu.registered import register

    register(kind)
    made = jax.ShapeDtypeStruct((len(x), arrays[0].shape[0]), jnp.float32)
    number = jnp.int32(0) if number is None else number
    y: Array = jax.ffi.ffi_call(kind.name, made)(x, number, *arrays)
    return y


def _width(x: str) -> int:
    """How many inputs one step of x takes."""
    from qwen_jax.nn.cpu.registered import processor
    from qwen_jax.nn.cpu.weights import arithmetic

    return arithmetic(x, processor()).width


def _short(x: str, size: int) -> bool | None:
    from qwen_jax.nn.cpu.registered import processor
    from qwen_jax.nn.cpu.tiles import short

    return short(x, size, processor())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Operand:
    """What products read: one of arrays that are alike, by a number that a loop counts.

    A product finds it among them. XLA would copy it out of one array that has all.
    """

    arrays: tuple[Array, ...]
    number: Array | None = None  # [] int32; None: the first

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrays[0].shape

    def array(self) -> Array:
        if self.number is None:
            return self.arrays[0]
        return jax.lax.switch(self.number, [lambda x=x: x for x in self.arrays])


@nnx.dataclass
class HostLinear(LinearLayer):
    """In the place of a Linear or a QuantLinear."""

    operands: tuple[Operand, ...] = nnx.data()  # the kernel; or codes, scales and perhaps zeros
    order: Array | None = nnx.data()  # see QuantLinear
    bias: Array | None = nnx.data()
    kind: Kind = nnx.static()

    def float32(self, x: Array) -> Array:
        if x.dtype != self.kind.x:
            return self._plain().float32(x)
        if self.order is not None:
            x = jnp.take(x, self.order, axis=-1)
        y = self._product(x.reshape(-1, x.shape[-1]))
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias

    def _product(self, x: Array) -> Array:
        """x [R in] -> [R out]."""
        arrays = [array for operand in self.operands for array in operand.arrays]
        return multiply(self.kind, x, *arrays, number=self.operands[0].number)

    def _plain(self) -> LinearLayer:
        if not self.kind.integers:
            return Linear(self.operands[0].array(), self.bias)
        codes, scales, *rest = (operand.array() for operand in self.operands)
        zeros = rest[0] if rest else None
        bits = int(self.kind.weights.removeprefix("int"))
        return QuantLinear(codes, scales, zeros, self.order, self.bias, bits)


@nnx.dataclass
class Looped(Qwen):
    """blocks: one, whose arrays are those of all blocks, stacked, but for products' operands."""

    def through(self, x: Array, where: Where, cache: AttentionCache) -> Attended:
        def layer(number: Array, carry: Attended) -> Attended:
            own = lambda x: replace(x, number=number) if _is_operand(x) else x[number]
            block = jax.tree.map(own, self.blocks[0], is_leaf=_is_operand)
            x, cache = carry
            made: Attended = block(x, where, cache, number, self.config)
            return made

        went: Attended = jax.lax.fori_loop(0, self.config.layers, layer, (x, cache))
        return went


def _hosted(
    kind: Kind, arrays: tuple[Array, ...], order: Array | None, bias: Array | None
) -> HostLinear:
    from qwen_jax.nn.cpu.registered import register

    register(kind)
    return HostLinear(tuple(Operand((array,)) for array in arrays), order, bias, kind)


def _is_operand(leaf: Any) -> bool:
    return isinstance(leaf, Operand)


def _kind(leaf: Any) -> tuple[Any, ...]:
    return leaf.shape, leaf.dtype
