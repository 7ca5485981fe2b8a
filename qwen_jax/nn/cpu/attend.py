"""The form of attention whose machine code is made for this processor."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from qwen_jax.nn.cpu.kinds import KEYS, SWITCH, Attention, available
from qwen_jax.nn.projected import Projected

_X, _STORED = ("float32", "bfloat16"), ("float32", "bfloat16", "int8")


def problem(x: DTypeLike, stored: DTypeLike, size: int) -> str | None:
    """Why heads of such a size cannot be attended to here; None: they can."""
    kind = _kind(x, stored, size)
    if not available():
        return f"needs llvmlite, and a processor that it knows, and {SWITCH} not to be xla"
    if kind.x not in _X or kind.stored not in _STORED:
        wanted = f"{' or '.join(_X)} over {', '.join(_STORED[:-1])} or {_STORED[-1]}"
        return f"takes {wanted}, got {kind.x} over {kind.stored}"
    from qwen_jax.nn.cpu.registered import processor
    from qwen_jax.nn.cpu.weights import arithmetic

    here = processor()
    step = max(here.lanes, arithmetic(kind.inner, here).width)
    return f"takes heads of multiples of {step} here, got {size}" if size % step else None


def register(x: DTypeLike, stored: DTypeLike, size: int) -> None:
    """Have XLA know it, for programs that were made before and call it."""
    from qwen_jax.nn.cpu import registered

    registered.register(_kind(x, stored, size))


def _kind(x: DTypeLike, stored: DTypeLike, size: int) -> Attention:
    return Attention(jnp.dtype(x).name, jnp.dtype(stored).name, size)


def store_and_attend(
    asked: Projected, key: Any, value: Any, table: Array | None, ends: Array
) -> tuple[Array, Any, Any]:
    """What kv_cache.store_and_attend gives."""
    query, *new = asked.split()
    query = query.reshape(*new[0].shape[:3], -1, query.shape[-1])
    if table is None:
        table = jnp.arange(len(query))[:, None]
    assert table.shape[1] == 1 or key.data.shape[2] % KEYS == 0
    what = query.dtype, key.data.dtype, query.shape[-1]
    register(*what)
    stored, tree = jax.tree.flatten((key, value))
    numbers = [x.astype(jnp.int32) for x in (table, asked.where.positions, ends)]
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    y, *stored = jax.ffi.ffi_call(
        _kind(*what).name,
        [shape(query), *map(shape, stored)],
        input_output_aliases={3 + n: 1 + n for n in range(len(stored))},
    )(query, *new, *stored, *numbers)
    return y, *jax.tree.unflatten(tree, stored)
