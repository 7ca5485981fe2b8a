"""Linear layers whose weights are int8 or int4 codes with scales: GPTQ, AWQ, and our own.

weight[o, i] = scales[o, g] * (codes[o, i] - zeros[o, g]), where group g holds input i. Groups are
equal runs of inputs; one group is "per channel". Codes are signed. Where a quantiser picked its
groups by the inputs' importance ("act-order"), `order` puts the inputs in the order of the codes.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.config import Config
from qwen_jax.nn import model, quant_matmul
from qwen_jax.nn.cpu.kinds import available
from qwen_jax.nn.model import Leaf, Linear, LinearLayer, Qwen
from qwen_jax.nn.quant_matmul import by_output, by_rows, groups, product, weight
from qwen_jax.nn.tree import INTEGERS, map_layers, named_layers, named_leaves

CODES = {4: jnp.int4, 8: jnp.int8}
_HALVES = 32  # inputs of a group come in multiples of it where a kernel takes halves
FIELDS = ("codes", "scales", "zeros", "order")  # what takes the place of a kernel


@nnx.dataclass
class QuantLinear(LinearLayer):
    """In Linear's place. codes: [out in]; `arrange` makes [groups out size], pairs or halves."""

    codes: Array = nnx.data()  # int4 or int8; uint8 in pairs and halves
    scales: Array = nnx.data()  # [out groups]; [groups out] where groups are apart
    zeros: Array | None = nnx.data()  # int8, as scales; None: all 0
    order: Array | None = nnx.data()  # int32 [in]; None: as they come
    bias: Array | None = nnx.data()
    bits: int = nnx.static()  # of the codes' values, whatever type holds them

    def float32(self, x: Array) -> Array:
        if self.order is not None:
            x = jnp.take(x, self.order, axis=-1)
        y = product(x.reshape(-1, x.shape[-1]), self.codes, self.scales, self.zeros)
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    @property
    def outputs(self) -> int:
        return self.codes.shape[0 if by_rows(self.codes) else 1]

    @property
    def inputs(self) -> int:
        return self.codes.size * (1 + (self.codes.dtype == jnp.uint8)) // self.outputs

    @property
    def kernel(self) -> Array:
        """The weights as they are in a Linear, float32 [out in], without rounding."""
        kernel = weight(self.codes, self.scales, self.zeros)
        if self.order is not None:
            kernel = jnp.zeros_like(kernel).at[:, self.order].set(kernel)
        return kernel


def quantize(linear: Linear, bits: int, group: int | None, symmetric: bool) -> QuantLinear:
    """Round to the nearest code. group: inputs that share a scale; None: all of an output's."""
    size = group_size(linear.kernel.shape, group)
    kernel = linear.kernel.astype(jnp.float32).reshape(linear.kernel.shape[0], -1, size)
    scales, zeros = grid(kernel, bits, symmetric)
    codes = encode(kernel, scales[..., None], 0 if zeros is None else zeros[..., None], bits)
    codes = codes.reshape(linear.kernel.shape).astype(CODES[bits])
    return QuantLinear(codes, scales, zeros, None, linear.bias, bits)


def dequantize(layer: QuantLinear, dtype: Any = jnp.float32) -> Linear:
    """The same layer with float weights; in float32 they are exact."""
    return Linear(layer.kernel.astype(dtype), layer.bias)


def grid(kernel: Array, bits: int, symmetric: bool) -> tuple[Array, Array | None]:
    """Scales (rounded to float16, as they are stored) and zeros for the last axis of a kernel.

    A symmetric grid reaches as far to both sides, or its least code is the largest weight, as in
    llama.cpp's Q4_0, and its scale below zero where that weight is above it: whichever is nearer.
    """
    low, high = jnp.minimum(kernel.min(-1), 0), jnp.maximum(kernel.max(-1), 0)
    least = -(2 ** (bits - 1))
    if symmetric:
        reach = jnp.maximum(-low, high)
        ends = _float16(2 * reach / (2**bits - 1)), _float16(reach / -least, (high > -low) * -2 + 1)
        even, exact = (_off(kernel, scales, bits) for scales in ends)
        return jnp.where(even < exact, *ends), None
    scales = _float16((high - low) / (2**bits - 1))
    zeros = jnp.clip(jnp.round(least - low / scales.astype(jnp.float32)), least, -least - 1)
    return scales, zeros.astype(jnp.int8)


def _off(kernel: Array, scales: Array, bits: int) -> Array:
    """What a symmetric grid loses of every group, squared."""
    scales = scales[..., None]
    made = encode(kernel, scales, 0, bits) * scales.astype(jnp.float32)
    return jnp.sum((made - kernel) ** 2, axis=-1)


def encode(kernel: Array, scales: Array, zeros: Array | int, bits: int) -> Array:
    """The codes nearest to float32 weights, as float32."""
    codes = jnp.round(kernel / scales.astype(jnp.float32)) + zeros
    return jnp.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _float16(scales: Array, sign: Array | int = 1) -> Array:
    """Never 0, and rounded up where float16 is coarse: a weight must not fall off the grid."""
    return (jnp.where(scales > 0, jnp.clip(scales, 2**-24, 65504), 1) * sign).astype(jnp.float16)


def group_size(shape: tuple[int, ...], group: int | None) -> int:
    size = shape[-1] if group is None else group
    if size < 1 or shape[-1] % size:
        raise ValueError(
            f"groups of {size} do not divide {shape[-1]} inputs; choose a divisor of "
            f"{shape[-1]}, for example {math.gcd(shape[-1], 128)}"
        )
    return size


# --- the order a platform likes ---------------------------------------------------------------
def arrange(layer: QuantLinear, platform: str) -> QuantLinear:
    """The same layer with its integers as this platform ("cpu", "gpu", "tpu") reads them best.

    "rest": as they lie on a disk.
    """
    count = groups(layer.codes, layer.scales)
    scales, zeros = by_output(layer.codes, layer.scales), layer.zeros
    zeros = None if zeros is None else by_output(layer.codes, zeros)
    size, own = layer.inputs // count, platform == "cpu" and available()
    halves = count > 1 and (own or platform not in ("cpu", "tpu", "rest"))
    if halves and layer.bits == 4 and size % _HALVES == 0:
        codes = quant_matmul.halved(layer.codes, count)
    elif platform == "cpu" and layer.bits == 4 and size % 2 == 0:
        codes = quant_matmul.paired(layer.codes)
    elif own or count == 1 or platform not in ("cpu", "tpu"):
        codes = quant_matmul.whole(layer.codes)
    else:
        codes, scales = quant_matmul.apart(layer.codes, count), scales.T
        zeros = None if zeros is None else zeros.T
    if platform == "rest":
        codes = codes.astype(CODES[layer.bits])
    elif platform == "cpu" and codes.dtype == jnp.int4:
        codes = codes.astype(jnp.int8)
    return QuantLinear(codes, scales, zeros, layer.order, layer.bias, layer.bits)


def at_rest(params: Any) -> Any:
    """A network whose quantised layers lie as in a checkpoint: whole rows, narrowest integers."""
    return map_layers(lambda _, x: arrange(x, "rest"), params, QuantLinear)


def arrange_all(params: Qwen, platform: str) -> Qwen:
    """A network whose every layer went through `arrange`."""
    leaves, order = named_leaves(params), list(named_leaves(params))
    arrange_leaves(leaves, platform)
    return jax.tree.unflatten(jax.tree.structure(params), [leaves[name] for name in order])


def arrange_leaves(leaves: dict[str, Any], platform: str) -> None:
    """`arrange` in place every layer whose leaves are there at rest, one after the other.

    leaves: by name, on the devices where they lie; shapes are arranged as arrays would be.
    """
    for name, format in formats_of(leaves).items():
        names = {field: f"{name}.{field}" for field in (*FIELDS, "bias")}
        found: Any = {field: leaves.pop(leaf, None) for field, leaf in names.items()}
        made = _arranged(QuantLinear(**found, bits=format.bits), platform)
        arrays = {leaf: getattr(made, field) for field, leaf in names.items()}
        leaves.update((leaf, array) for leaf, array in arrays.items() if array is not None)


def _arranged(layer: QuantLinear, platform: str) -> QuantLinear:
    made = jax.eval_shape(functools.partial(arrange, platform=platform), layer)
    turned = by_rows(layer.codes) and not by_rows(made.codes)
    shardings = [
        _turned(x.sharding) if turned and x.ndim == 2 else x.sharding
        for x in jax.tree.leaves(layer)
    ]
    if not isinstance(layer.codes, jax.ShapeDtypeStruct):
        wanted = jax.tree.unflatten(jax.tree.structure(made), shardings)
        return jax.device_put(_arrange(layer, platform), wanted)
    shapes, tree = jax.tree.flatten(made)
    put = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.unflatten(tree, map(put, shapes, shardings))


_arrange = jax.jit(arrange, static_argnames="platform")
rest = jax.jit(at_rest)


def _turned(sharding: Any) -> Any:
    """Where an array lies whose first two axes have changed places."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    out, inputs = (*sharding.spec, None, None)[:2]
    return NamedSharding(sharding.mesh, P(inputs, out))


# --- the layers of a network ------------------------------------------------------------------
@dataclass(frozen=True)
class Format:
    """How a layer's weights are quantised."""

    bits: int
    groups: int  # of each output
    zeros: bool
    order: bool


def plan(config: Config, bits: int, group: int | None, zeros: bool) -> dict[str, Format]:
    """One way for every linear layer of the blocks; group: inputs that share a scale, or None."""
    groups = lambda shape: shape[1] // group_size(shape, group)
    return {
        name: Format(bits, groups(linear.kernel.shape), zeros, False)
        for name, linear in named_layers(model.build(config, _Wanted), Linear).items()
        if name.startswith("blocks")
    }


def pieces(layer: Any) -> int:
    """How many runs of inputs a mesh may cut between: of a quantised layer its groups."""
    layer = getattr(layer, "base", layer)  # without adapters
    if not isinstance(layer, QuantLinear):
        return int(layer.kernel.shape[-1])
    count = groups(layer.codes, layer.scales)
    return count if count > 1 else layer.inputs // (1 + (layer.bits == 4))


def formats_of(leaves: Mapping[str, Any]) -> dict[str, Format]:
    """Layer -> how it is quantised, from leaves at rest by their names."""
    found = {}
    for name, codes in leaves.items():
        layer, _, field = name.rpartition(".")
        if field == "codes":
            scales = leaves.get(f"{layer}.scales", codes)
            bits = 4 if codes.dtype == jnp.int4 else 8
            has = lambda field, layer=layer: f"{layer}.{field}" in leaves
            found[layer] = Format(bits, scales.shape[-1], has("zeros"), has("order"))
    return found


def build(config: Config, formats: Mapping[str, Format], leaf: Leaf) -> Qwen:
    """model.build with quantised layers where `formats` names them, at rest.

    The kinds of their leaves are "scales" and the names of integer dtypes. Raises ValueError where
    groups do not divide a layer's inputs.
    """
    wanted = _wanted(config, frozenset(formats.items()))
    return jax.tree.map(lambda x: leaf(x.shape, x.axes, x.kind), wanted)


@functools.lru_cache(maxsize=8)
def _wanted(config: Config, formats: frozenset[tuple[str, Format]]) -> Qwen:
    """The tree of _Wanted; to make it anew, a thousand objects, takes most of a tree's time."""
    of = dict(formats)
    change = lambda name, x: _quantised(name, x, of[name]) if name in of else x
    return map_layers(change, model.build(config, _Wanted), Linear)


def abstract_leaves(config: Config, formats: Mapping[str, Format] | None = None) -> dict[str, Any]:
    """Every leaf's shape and dtype by name; float32 stands for any float."""
    dtype = lambda kind: jnp.dtype(kind if kind in INTEGERS else "float32")
    leaf = lambda shape, axes, kind: jax.ShapeDtypeStruct(shape, dtype(kind))
    return named_leaves(build(config, formats or {}, leaf))


@dataclass(frozen=True)
class _Wanted:
    """A leaf to come: the arguments of model.Leaf."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    kind: str


def _quantised(name: str, linear: Any, format: Format) -> QuantLinear:
    wanted: Any = _Wanted
    out, size = linear.kernel.shape
    if size % format.groups or size % 2:
        raise ValueError(f"{name} has {size} inputs, which {format.groups} groups do not divide")
    axes = linear.kernel.axes
    by_group = lambda kind: wanted((out, format.groups), axes, kind)
    return QuantLinear(
        codes=wanted((out, size), axes, f"int{format.bits}"),
        scales=by_group("scales"),
        zeros=by_group("int8") if format.zeros else None,
        order=wanted((size,), (None,), "int32") if format.order else None,
        bias=linear.bias,
        bits=format.bits,
    )
