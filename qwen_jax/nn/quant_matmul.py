"""Products of activations with integer weights: a recipe for each platform and number of rows.

A weight is scale * (code - zero), with a scale and a zero for every `size` inputs of an output.
Its codes lie in one of four orders: whole rows, codes [out in] with scales and zeros [out groups],
which a GPU and nn.cpu's products read best; groups apart, [groups out size] and [groups out], which
TPUs do, and XLA's CPU for int8; int4 in pairs, uint8 [out in/2] with [out groups], for XLA's CPU,
which unpacks int4 slowly; or in halves, uint8 [out groups size/2] with [out groups], for kernels.
Every recipe takes all of them, and none makes an expanded copy of the codes in memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

# Programs with these products want them: XLA's GPU compiler then scales groups of codes inside the
# matrix product. Without the first, and wherever it splits a product along its inputs, it rebuilds
# all weights as floats at every step.
COMPILER_OPTIONS: dict[str, Any] = {
    "xla_gpu_experimental_enable_subchannel_dequantisation_fusion": True,
    "xla_gpu_experimental_force_split_k": 1,
}
_FEW = {"cpu": 4, "tpu": 64}  # rows up to which groups are multiplied first and scaled afterwards
_BLOCKS = 16  # of outputs, where codes of whole rows are widened on a CPU
_STEP = 254  # a piece of an activation is at most 127 steps, its rest half a step, either way


@jax.custom_vjp
def product(x: Array, codes: Array, scales: Array, zeros: Array | None) -> Array:
    """x [M in] -> float32 [M out]. The weights are constants: only x has a gradient."""
    y = jax.lax.platform_dependent(x, codes, scales, cpu=_on_cpu, tpu=_on_tpu, default=_on_gpu)
    if zeros is None:
        return y
    # a barrier, or XLA makes the offsets of many layers before it needs them
    x, scales, zeros = jax.lax.optimization_barrier((x, scales, zeros))
    return y - _highest(group_sums(x, groups(codes, scales)), _offsets(codes, scales, zeros))


def whole(codes: Array) -> Array:
    """Codes in any order -> [out in]."""
    if codes.dtype == jnp.uint8:
        join = jnp.stack if codes.ndim == 2 else jnp.concatenate
        numbers = join([codes & 15, codes >> 4], axis=-1)
        return numbers.reshape(len(codes), -1).astype(jnp.int8) - 8
    if codes.ndim == 2:
        return codes
    return codes.swapaxes(0, 1).reshape(codes.shape[1], -1)


def apart(codes: Array, groups: int) -> Array:
    """Codes in any order -> [groups out size]."""
    if not by_rows(codes):
        return codes
    codes = whole(codes)
    return codes.reshape(codes.shape[0], groups, -1).swapaxes(0, 1)


def paired(codes: Array) -> Array:
    """Codes of 4 bits in any order -> uint8 [out in/2]: code + 8, the first in the low bits."""
    codes = (whole(codes).astype(jnp.int8) + 8).astype(jnp.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4


def halved(codes: Array, groups: int) -> Array:
    """Codes of 4 bits in any order -> uint8 [out groups size/2]: code + 8, of a group's first half
    in the low bits and of its second in the high ones."""
    codes = (whole(codes).astype(jnp.int8) + 8).astype(jnp.uint8)
    low, high = jnp.split(codes.reshape(len(codes), groups, -1), 2, axis=-1)
    return low | high << 4


def by_rows(codes: Array) -> bool:
    """Whether outputs come first, in codes and scales."""
    return codes.ndim == 2 or codes.dtype == jnp.uint8


def groups(codes: Array, scales: Array) -> int:
    return scales.shape[1] if by_rows(codes) else scales.shape[0]


def group_sums(x: Array, groups: int) -> Array:
    """[M in] -> float32 [M groups]."""
    return x.astype(jnp.float32).reshape(x.shape[0], groups, -1).sum(-1)


def weight(codes: Array, scales: Array, zeros: Array | None) -> Array:
    """The weights, float32 [out in]; a float16 scale times an integer is exact."""
    scales = by_output(codes, scales).astype(jnp.float32)
    kernel = whole(codes).astype(jnp.float32).reshape(*scales.shape, -1)
    if zeros is not None:
        kernel = kernel - by_output(codes, zeros)[..., None].astype(jnp.float32)
    return (kernel * scales[..., None]).reshape(scales.shape[0], -1)


def by_output(codes: Array, numbers: Array) -> Array:
    """Scales or zeros that lie as the codes do -> [out groups]."""
    return numbers if by_rows(codes) else numbers.T


def _by_group(codes: Array, numbers: Array) -> Array:
    return numbers.T if by_rows(codes) else numbers


# --- by platform ------------------------------------------------------------------------------
def _on_gpu(x: Array, codes: Array, scales: Array) -> Array:
    """One Triton product that reads integers and scales; of halves, one for each."""
    if codes.dtype == jnp.uint8 and codes.ndim == 3:
        return _of_halves(x, codes, scales)
    codes, scales = whole(codes), by_output(codes, scales)
    if scales.shape[1] == 1:
        return _dot(x, codes.astype(x.dtype)) * scales[:, 0].astype(jnp.float32)
    size = codes.shape[1] // scales.shape[1]
    return _dot(x, codes.astype(x.dtype) * jnp.repeat(scales.astype(x.dtype), size, axis=1))


def _of_halves(x: Array, codes: Array, scales: Array) -> Array:
    out, count, half = codes.shape
    x = x.reshape(len(x), count, 2, half)
    codes, scales = codes.reshape(out, -1), jnp.repeat(scales.astype(x.dtype), half, axis=1)

    def part(n: int, numbers: Array) -> Array:
        kernel = (numbers.astype(jnp.int8) - 8).astype(x.dtype) * scales
        return _dot(x[:, :, n].reshape(len(x), -1), kernel)

    return part(0, codes & 15) + part(1, codes >> 4)


def _on_tpu(x: Array, codes: Array, scales: Array) -> Array:
    """A product for each group, then its scales; of many rows, one product that scales first.

    Both keep the codes' conversion inside the product. Eight rows fill a register.
    """
    rows = x.shape[0]
    x = jnp.pad(x, ((0, max(0, 8 - rows)), (0, 0)))
    if groups(codes, scales) == 1:
        y = _dot(x, whole(codes).astype(x.dtype))[:rows]
        return y * by_output(codes, scales)[:, 0].astype(jnp.float32)
    codes, scales = apart(codes, groups(codes, scales)), _by_group(codes, scales)
    count = len(codes)
    grouped = x.reshape(x.shape[0], count, -1)
    if count > 1 and rows > _FEW["tpu"]:
        scaled = codes.astype(x.dtype) * scales[..., None].astype(x.dtype)
        return jnp.einsum("mgi,goi->mo", grouped, scaled, preferred_element_type=jnp.float32)
    parts = jnp.einsum(
        "mgi,goi->gmo", grouped, codes.astype(x.dtype), preferred_element_type=jnp.float32
    )
    return (parts * scales[:, None].astype(jnp.float32)).sum(0)[:rows]


def _on_cpu(x: Array, codes: Array, scales: Array) -> Array:
    """Integers against integers, which alone are fast, for few rows; floats for many."""
    count, packed = groups(codes, scales), codes.dtype == jnp.uint8
    rows, few = x.shape[0], x.shape[0] <= _FEW["cpu"]
    if few and packed and codes.ndim == 2:
        return jnp.stack([_of_pairs(row, codes, scales) for row in x])
    scales = _by_group(codes, scales).astype(jnp.float32)
    codes = codes if packed else codes.astype(jnp.int8)
    if few and not packed:
        return _in_pieces(x, apart(codes, count), scales)
    if count == 1:
        return _by_blocks(x, codes if by_rows(codes) else codes[0]) * scales[0]

    def add(group: int, y: Array) -> Array:
        if by_rows(codes):
            size = codes.shape[1] // count
            part = whole(jax.lax.dynamic_slice_in_dim(codes, group * size, size, axis=1))
        else:
            part = codes[group]
        return y + _dot(grouped[group], part.astype(x.dtype)) * scales[group]

    grouped = x.reshape(rows, count, -1).swapaxes(0, 1)
    return jax.lax.fori_loop(0, count, add, jnp.zeros((rows, scales.shape[1]), jnp.float32))


def _of_pairs(x: Array, codes: Array, scales: Array) -> Array:
    """x [in] -> [out], with each activation as an int32 of the bits a group's sum has room for.

    So it is about as exact as float32. The sums of codes + 8 may overflow; what is taken off them
    overflows alike.
    """
    half = codes.shape[1] // scales.shape[1]
    x, codes = jax.lax.optimization_barrier((x, codes))  # else loops widen codes before they begin
    x = x.astype(jnp.float32).reshape(scales.shape[1], half, 2).swapaxes(1, 2)  # as codes in pairs
    unit = jnp.sum(jnp.abs(x), axis=(1, 2), keepdims=True) * (8 / (2**31 - 2**20))
    digits = jnp.round(x / jnp.where(unit == 0, 1, unit)).astype(jnp.int32)
    # It changes nothing, but what costs a division is computed once; the rest, for every output.
    digits = jax.lax.rem(digits, jnp.where(unit.max() < 0, 1, jnp.int32(2**31 - 1)))
    axes = _short(half)
    codes = codes.reshape(*scales.shape, *axes)
    low, high = (digits[:, n].reshape(-1, *axes) for n in (0, 1))
    terms = (codes & 15).astype(jnp.int32) * low + (codes >> 4).astype(jnp.int32) * high
    sums = terms.sum(range(2, terms.ndim)) - 8 * digits.sum((1, 2))  # [out groups]
    return (sums.astype(jnp.float32) * (scales.astype(jnp.float32) * unit[:, 0, 0])).sum(-1)


def _short(size: int) -> list[int]:
    """Axes that make up `size`, of 32 at most where that can be: XLA would sum longer ones twice,
    with all terms in memory."""
    axes: list[int] = []
    while size > 32 and (axis := max(n for n in range(1, 33) if size % n == 0)) > 1:
        axes, size = [axis, *axes], size // axis
    return [size, *axes]


def _in_pieces(x: Array, codes: Array, scales: Array) -> Array:
    """Each activation as three int8 digits, as exact as float32, whose products are exact."""
    x = x.astype(jnp.float32)
    unit = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    rest, pieces = x / jnp.where(unit == 0, 1, unit), []
    for _ in range(3):
        pieces.append(jnp.round(rest))
        rest = (rest - pieces[-1]) * _STEP
    digits = jnp.stack(pieces).astype(jnp.int8)  # [3 M in]
    digits = digits.reshape(-1, len(codes), codes.shape[2])
    over_size = (((2,), (2,)), ((0,), (1,)))  # codes come first: the other way is not fast
    y = jax.lax.dot_general(codes, digits, over_size, preferred_element_type=jnp.int32)
    y = (y * scales[..., None]).sum(0).reshape(-1, 3, x.shape[0])
    y = y[:, 0] + (y[:, 1] + y[:, 2] / _STEP) / _STEP
    return (y * unit[:, 0]).T


def _by_blocks(x: Array, codes: Array) -> Array:
    """The product with codes in whole rows, some outputs at a time."""
    out = codes.shape[0]
    count = next(n for n in range(_BLOCKS, 0, -1) if out % n == 0)
    blocks = codes.reshape(count, out // count, *codes.shape[1:])
    y = jax.lax.map(lambda block: _dot(x, whole(block).astype(x.dtype)), blocks)  # [blocks M out]
    return y.swapaxes(0, 1).reshape(x.shape[0], out)


def _dot(x: Array, kernel: Array) -> Array:
    over_in = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, kernel, over_in, preferred_element_type=jnp.float32)


def _highest(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")


def _offsets(codes: Array, scales: Array, zeros: Array) -> Array:
    """scale * zero, float32 [groups out]: what a group's sum of activations is multiplied by."""
    return _by_group(codes, scales.astype(jnp.float32) * zeros.astype(jnp.float32))


# --- the gradient -----------------------------------------------------------------------------
Kept = tuple[Array, Array, Array, Array | None]


def _forward(x: Array, codes: Array, scales: Array, zeros: Array | None) -> tuple[Array, Kept]:
    like_x = jnp.zeros((0,), x.dtype)
    return product(x, codes, scales, zeros), (like_x, codes, scales, zeros)


def _backward(kept: Kept, dy: Array) -> tuple[Array, None, None, None]:
    """What is kept between the two is integers; dy [M out] -> dx [M in]."""
    like_x, codes, scales, zeros = kept
    dtype = like_x.dtype
    if by_rows(codes):
        count, codes = scales.shape[1], whole(codes)
        scaled = codes.astype(dtype) * jnp.repeat(
            scales.astype(dtype), codes.shape[1] // count, axis=1
        )
        dx = jnp.matmul(dy.astype(dtype), scaled, preferred_element_type=jnp.float32)
    else:
        count = len(codes)
        scaled = codes.astype(dtype) * scales[..., None].astype(dtype)
        dx = jnp.einsum(
            "mo,goi->mgi", dy.astype(dtype), scaled, preferred_element_type=jnp.float32
        ).reshape(len(dy), -1)
    if zeros is not None:
        offset = _highest(dy, _offsets(codes, scales, zeros).T)
        dx = dx - jnp.repeat(offset, dx.shape[1] // count, axis=1)
    return dx.astype(dtype), None, None, None


product.defvjp(_forward, _backward)
