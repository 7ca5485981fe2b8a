"""Where keys and values live between calls: the seam `attend(layer, q, k, v, positions)`.

A cache is a pytree of one array per layer, carried through the decode loop and donated, so
XLA updates it in place. Slot b of every array belongs to one request.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qwen_jax.config import Config
from qwen_jax.nn.attention import attend


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Store:
    """One layer's keys, or its values, [B K S H]; int8 comes with a scale per token and head."""

    data: Array
    scale: Array | None  # [B K S] float32 with int8 data

    @staticmethod
    def empty(slots: int, heads: int, length: int, size: int, dtype: Any) -> "Store":
        scale = jnp.zeros((slots, heads, length), jnp.float32) if dtype == jnp.int8 else None
        return Store(jnp.zeros((slots, heads, length, size), dtype), scale)

    def write(self, x: Array, slot: Array | None, starts: Array) -> "Store":
        """x [b T K H] goes to one slot (b = 1) or to all of them, from positions starts [b] on."""
        x = jnp.swapaxes(x, 1, 2)  # [b K T H]
        if self.scale is None:
            return Store(_write(self.data, x.astype(self.data.dtype), slot, starts), None)
        x, scale = quantize(x)
        return Store(_write(self.data, x, slot, starts), _write(self.scale, scale, slot, starts))

    def read(self, slot: Array | None, window: int | None) -> "Store":
        """What one slot or all of them hold up to `window`."""

        def cut(x: Array) -> Array:
            rows = x if slot is None else jax.lax.dynamic_slice_in_dim(x, slot, 1)
            return rows[:, :, :window]

        return jax.tree.map(cut, self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoCache:
    """Scoring and training: attend over the tokens of this call alone."""

    def attend(
        self, layer: int, q: Array, k: Array, v: Array, positions: Array
    ) -> tuple[Array, "NoCache"]:
        """q [B T N H], k and v [B T K H], positions [B T] = 0, 1, 2 ... -> [B T N H], self."""
        key, value = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        y = attend(_grouped(q, k.shape[2]), Store(key, None), Store(value, None), positions)
        return y.reshape(q.shape), self


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Contiguous slots [B K S H], one store of keys and one of values per layer."""

    keys: tuple[Store, ...]
    values: tuple[Store, ...]
    slot: Array | None = None  # the one slot a call works on; None: all, in order
    window: int | None = field(default=None, metadata={"static": True})  # positions it may read
    longest: Array | None = None  # tokens of the longest text whose result counts; None: unknown

    @staticmethod
    def empty(config: Config, slots: int, length: int, dtype: Any) -> "Cache":
        """Room for `length` tokens in each slot, in a float type or int8."""
        layer = lambda: Store.empty(slots, config.kv_heads, length, config.head_dim, dtype)
        keys, values = (tuple(layer() for _ in range(config.layers)) for _ in range(2))
        return Cache(keys, values)

    @property
    def length(self) -> int:
        return self.keys[0].data.shape[2]

    def select(
        self, slot: Array | None, window: int | None, longest: Array | None = None
    ) -> "Cache":
        """The same cache for a call on one slot, or all, that needs no key past these."""
        return replace(self, slot=slot, window=window, longest=longest)

    def attend(
        self, layer: int, q: Array, k: Array, v: Array, positions: Array
    ) -> tuple[Array, "Cache"]:
        """Store k and v at positions [B T] (consecutive in a row), then attend to what is stored.

        q [B T N H], k and v [B T K H] -> [B T N H] and the cache that holds the new tokens.
        """
        key = self.keys[layer].write(k, self.slot, positions[:, 0])
        value = self.values[layer].write(v, self.slot, positions[:, 0])
        read = lambda store: store.read(self.slot, self.window)
        y = attend(_grouped(q, k.shape[2]), read(key), read(value), positions, self.longest)
        at = lambda stores, new: (*stores[:layer], new, *stores[layer + 1 :])
        cache = replace(self, keys=at(self.keys, key), values=at(self.values, value))
        return y.reshape(q.shape), cache


def quantize(x: Array) -> tuple[Array, Array]:
    """x [..., H] -> int8 [..., H] and float32 [...] with x ≈ int8 * scale: one scale per vector.

    Rounded and symmetric, where the original truncates to one range per call and head.
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    safe = jnp.where(scale > 0, scale, 1.0)[..., None]
    return jnp.round(x / safe).astype(jnp.int8), scale


def _grouped(q: Array, kv_heads: int) -> Array:
    return q.reshape(*q.shape[:2], kv_heads, -1, q.shape[-1])


def _write(whole: Array, part: Array, slot: Array | None, starts: Array) -> Array:
    """Write part [b K T ...] into whole [B K S ...] at starts [b]."""
    if slot is not None:
        at: list[Any] = [slot, 0, starts[0], *[0] * (whole.ndim - 3)]
        return jax.lax.dynamic_update_slice(whole, part, at)
    slots, heads, tokens = (jnp.arange(n) for n in part.shape[:3])
    rows = (slots[:, None, None], heads[:, None], starts[:, None, None] + tokens)
    # One vector per head and token: a single kernel on a GPU or TPU. Slices over all heads would
    # make a CPU copy the cache, and a TPU loop over the slots or keep it in another layout.
    return whole.at[rows].set(
        part,
        mode="drop",  # a slot that filled its cache stands past the end
        unique_indices=True,
        indices_are_sorted=True,
        wrap_negative_indices=False,
    )
