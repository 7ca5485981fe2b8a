"""int4 on a disk: two in a byte, the first in the low bits."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np


def bits(dtype: Any) -> int:
    """Of one number in a checkpoint."""
    return 4 if dtype == jnp.int4 else 8 * jnp.dtype(dtype).itemsize


def packed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """How a leaf lies on the disk."""
    if leaf.dtype != jnp.int4:
        return leaf
    shape = (*leaf.shape[:-1], leaf.shape[-1] // 2)
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=leaf.sharding)


def pack(array: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """int4 [out in] -> uint8 [out in/2]; other arrays as they are."""
    if array.dtype != jnp.int4:
        return array
    if isinstance(array, jax.Array):
        return _pack(array)
    codes = array.view(np.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4


def unpack(array: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """uint8 [out in/2] -> int4 [out in]; in NumPy, which has no narrower one, a byte for each."""
    if isinstance(array, jax.Array):
        return _unpack(array)
    codes = np.stack([array & 15, array >> 4], axis=-1)
    return codes.reshape(len(array), -1).view(ml_dtypes.int4)


@jax.jit
def _pack(codes: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(codes.reshape(len(codes), -1, 2), jnp.uint8)


@jax.jit
def _unpack(array: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(array, jnp.int4).reshape(len(array), -1)
