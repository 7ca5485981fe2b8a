"""Linear layers whose weights are int8 or int4 codes with scales: GPTQ, AWQ, and our own.

weight[o, i] = scales[o, g] * (codes[o, i] - zeros[o, g]), where group g holds input i. Groups are
equal runs of inputs; one group is "per channel". Codes are signed. Where a quantiser picked its
groups by the inputs' importance ("act-order"), `order` puts the inputs in the order of the codes.
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qwen_jax.integer_matmul import apart, by_output, groups, product, weight, whole
from qwen_jax.model import LINEAR, Linear


@nnx.dataclass
class QuantLinear(nnx.Module):
    """In Linear's place. codes: [out in], or [groups out size] where `arrange` put groups apart."""

    codes: Array = nnx.data()  # int4 or int8
    scales: Array = nnx.data()  # [out groups]; [groups out] where groups are apart
    zeros: Array | None = nnx.data()  # int8, as scales; None: all 0
    order: Array | None = nnx.data()  # int32 [in]; None: as they come
    bias: Array | None = nnx.data()
    bits: int = nnx.static()  # of the codes' values, whatever type holds them

    def __call__(self, x: Array) -> Array:
        return checkpoint_name(self.float32(x).astype(x.dtype), LINEAR)

    def float32(self, x: Array) -> Array:
        """The same before it is rounded to x's type."""
        if self.order is not None:
            x = jnp.take(x, self.order, axis=-1)
        y = product(x.reshape(-1, x.shape[-1]), self.codes, self.scales, self.zeros)
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


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
    kernel = weight(layer.codes, layer.scales, layer.zeros, dtype)
    if layer.order is not None:
        kernel = jnp.zeros_like(kernel).at[:, layer.order].set(kernel)
    return Linear(kernel, layer.bias)


CODES = {4: jnp.int4, 8: jnp.int8}


def grid(kernel: Array, bits: int, symmetric: bool) -> tuple[Array, Array | None]:
    """Scales (rounded to float16, as they are stored) and zeros for the last axis of a kernel."""
    low, high = jnp.minimum(kernel.min(-1), 0), jnp.maximum(kernel.max(-1), 0)
    if symmetric:
        reach = jnp.maximum(-low, high)
        return _float16(2 * reach / (2**bits - 1)), None
    scales = _float16((high - low) / (2**bits - 1))
    least = -(2 ** (bits - 1))
    zeros = jnp.clip(jnp.round(least - low / scales.astype(jnp.float32)), least, -least - 1)
    return scales, zeros.astype(jnp.int8)


def encode(kernel: Array, scales: Array, zeros: Array | int, bits: int) -> Array:
    """The codes nearest to float32 weights, as float32."""
    codes = jnp.round(kernel / scales.astype(jnp.float32)) + zeros
    return jnp.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _float16(scales: Array) -> Array:
    """Never 0, and rounded up where float16 is coarse: a weight must not fall off the grid."""
    return jnp.where(scales > 0, jnp.clip(scales, 2**-24, 65504), 1).astype(jnp.float16)


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
    """The same layer with its integers as this platform ("cpu", "gpu", "tpu") reads them best."""
    count = groups(layer.codes, layer.scales)
    codes = layer.codes.astype(jnp.int8) if platform == "cpu" else layer.codes
    numbers = lambda a: None if a is None else by_output(layer.codes, a)
    scales, zeros = numbers(layer.scales), numbers(layer.zeros)
    if count == 1 or platform not in ("cpu", "tpu"):
        codes = whole(codes)
    else:
        codes, scales = apart(codes, count), scales.T
        zeros = None if zeros is None else zeros.T
    return QuantLinear(codes, scales, zeros, layer.order, layer.bias, layer.bits)


def at_rest(layer: QuantLinear) -> QuantLinear:
    """The same layer as checkpoints hold it: whole rows, the narrowest integers."""
    made = arrange(layer, "gpu")
    made.codes = made.codes.astype(CODES[layer.bits])
    return made
