"""Where keys and values live between calls: the seam `attend(layer, asked)`.

A cache is a pytree of one array per layer, carried through the decode loop and donated, so
XLA updates it in place; or of one array for all layers, where a loop goes through them. It is a
pool of pages; a call says which pages its rows' texts lie in. Where nobody shares, a page is as
long as a text may get, and row b has page b.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from qwen_jax.config import Config
from qwen_jax.nn.attention import PAGE, attend, attend_whole
from qwen_jax.nn.backends import XLA, Backend
from qwen_jax.nn.heads import Heads
from qwen_jax.nn.projected import Projected


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Store:
    """One layer's keys, or its values, [P K page H]; int8 comes with a scale per token and head."""

    data: Array
    scale: Array | None  # [P K page] float32 with int8 data

    @staticmethod
    def empty(pages: int, heads: int, page: int, size: int, dtype: Any) -> "Store":
        scale = jnp.zeros((pages, heads, page), jnp.float32) if dtype == jnp.int8 else None
        return Store(jnp.zeros((pages, heads, page, size), dtype), scale)

    def write(self, x: Array, pages: Array, offsets: Array, in_order: bool = False) -> "Store":
        """x [B T K H] goes to places in pages, both [B T]; nowhere if the place is past the page.

        in_order: row b writes to page b.
        """
        x = jnp.swapaxes(x, 1, 2)  # [B K T H]
        x, scale = (x.astype(self.data.dtype), None) if self.scale is None else quantize(x)
        heads = jnp.arange(x.shape[1])[:, None]
        at = (pages[:, None], heads, offsets[:, None])

        def write(whole: Array, part: Array) -> Array:
            # One vector per head and token: a single kernel on a GPU or TPU. Slices over all heads
            # would make a TPU loop over the rows or keep the pool in another layout.
            return whole.at[at].set(
                part,
                mode="drop",
                unique_indices=True,
                indices_are_sorted=in_order,
                wrap_negative_indices=False,
            )

        return jax.tree.map(write, self, Store(x, scale))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoCache:
    """Scoring: attend over the tokens of this call alone."""

    mesh: Mesh | None = field(default=None, metadata={"static": True})

    def attend(self, layer: int | Array, asked: Projected) -> tuple[Array, "NoCache"]:
        """Positions [B T] are 0, 1, 2 ... -> [B T N H], self."""
        return attend_alone(*asked.split(), asked.where.positions, self.mesh), self


def attend_alone(q: Array, k: Array, v: Array, positions: Array, mesh: Mesh | None) -> Array:
    """Queries [B T N H] over keys and values [B S K H] that no cache holds; -> [B T N H]."""
    heads = Heads.of(k.shape[2], q.shape[2] // k.shape[2], mesh)
    query, k, v = heads.spread(q, k, v)
    key, value = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    return heads.collect(attend_whole(query, Store(key, None), Store(value, None), positions))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """A pool of pages, one store of keys and one of values per layer, or one for all layers."""

    keys: tuple[Store, ...]
    values: tuple[Store, ...]
    table: Array | None = None  # [B blocks] pages of a call's rows; None: row b has page b alone
    ends: Array | None = None  # [B] tokens of a row's text with those of the call; None: see attend
    shared: bool = field(default=False, metadata={"static": True})  # any row may have any page
    backend: Backend = field(default=XLA, metadata={"static": True})  # what attends
    apart: bool = field(default=False, metadata={"static": True})  # a call's rows are texts apart
    layers: int = field(default=1, metadata={"static": True})  # of a store, one behind the other

    @staticmethod
    def empty(
        config: Config,
        slots: int,
        length: int,
        dtype: Any,
        backend: Backend = XLA,
        looped: bool = False,
    ) -> "Cache":
        """A page of `length` tokens for each slot, in a float type or int8.

        looped: all layers in one store, so that their numbers may be traced.
        """
        heads = Heads.of(config.kv_heads, config.groups, backend.mesh).places
        stores, layers = (1, config.layers) if looped else (config.layers, 1)
        store = lambda: Store.empty(layers * slots, heads, length, config.head_dim, dtype)
        keys, values = (tuple(store() for _ in range(stores)) for _ in range(2))
        return Cache(keys, values, backend=backend, layers=layers)

    @staticmethod
    def paged(
        config: Config, pages: int, dtype: Any, backend: Backend = XLA, looped: bool = False
    ) -> "Cache":
        """A pool of pages of PAGE tokens that slots share."""
        return replace(Cache.empty(config, pages, PAGE, dtype, backend, looped), shared=True)

    def select(self, table: Array | None, ends: Array | None, apart: bool = False) -> "Cache":
        """The same cache for a call on rows whose texts lie there and have so many tokens.

        apart: no two rows are parts of one text. Kernels want that: where one row reads what
        another stores, all must be stored before anything is read.
        """
        return replace(self, table=table, ends=ends, apart=apart)

    def attend(self, layer: int | Array, asked: Projected) -> tuple[Array, "Cache"]:
        """Store keys and values at positions [B T] (consecutive in a row), then attend to the row.

        Tokens at a row's end and behind are padding: nothing is stored for them. Where `ends` is
        None there are none. -> [B T N H] and the cache that holds the new tokens.
        """
        ends = asked.where.positions[:, -1] + 1 if self.ends is None else self.ends
        _, length, kv_heads, places, _ = asked.qkv.shape
        kernel = self.backend.kernel(length, self.table, self.apart)
        form = kernel or functools.partial(store_and_attend, over=self.backend.over(self.table))
        heads = Heads.of(kv_heads, places - 2, self.backend.mesh)
        asked = asked.with_product(heads.spread_product(asked.qkv))
        at, table = 0 if len(self.keys) == 1 else int(layer), self.table
        if self.layers > 1:
            own = jnp.arange(len(ends))[:, None] if table is None else table
            table = layer * self._pages() + own
        y, key, value = form(asked, self.keys[at], self.values[at], table, ends)
        put = lambda stores, new: (*stores[:at], new, *stores[at + 1 :])
        cache = replace(self, keys=put(self.keys, key), values=put(self.values, value))
        return heads.collect(y), cache

    def copy(self, source: Array, target: Array) -> "Cache":
        """This cache with what is in page `source` also in page `target`."""
        first = jnp.arange(self.layers) * self._pages()
        move = lambda x: x.at[first + target].set(x[first + source])
        keys, values = jax.tree.map(move, (self.keys, self.values))
        return replace(self, keys=keys, values=values)

    def _pages(self) -> int:
        """Of a layer."""
        return len(self.keys[0].data) // self.layers


def store_and_attend(
    asked: Projected,
    key: Store,
    value: Store,
    table: Array | None,
    ends: Array,
    over: Callable[..., Array] | None = None,
) -> tuple[Array, Store, Store]:
    """XLA's form of what kernels do; -> [B T K G H] and the stores.

    over: what attends in the place of XLA's form to what is stored then.
    """
    page, positions = key.data.shape[2], asked.where.positions
    query, *new = asked.split()
    query = query.reshape(*new[0].shape[:3], -1, query.shape[-1])
    if table is None:
        pages, room = jnp.broadcast_to(jnp.arange(len(query))[:, None], positions.shape), page
    else:
        pages = jnp.take_along_axis(table, positions // page, axis=1, mode="clip")
        room = table.shape[1] * page
    real = positions < jnp.minimum(ends, room)[:, None]
    offsets = jnp.where(real, positions % page, page)
    key, value = (
        store.write(x, pages, offsets, in_order=table is None)
        for store, x in zip((key, value), new, strict=True)
    )
    return (over or attend)(query, key, value, table, positions, ends), key, value


def quantize(x: Array) -> tuple[Array, Array]:
    """x [..., H] -> int8 [..., H] and float32 [...] with x ≈ int8 * scale: one scale per vector.

    Rounded and symmetric, where the original truncates to one range per call and head.
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    safe = jnp.where(scale > 0, scale, 1.0)[..., None]
    return jnp.round(x / safe).astype(jnp.int8), scale
