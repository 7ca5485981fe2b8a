"""Random calls of a kernel, and NumPy's answer to them in float64."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.nn.model import RMSNorm
from qwen_jax.nn.projected import Projected
from qwen_jax.nn.rope import Where

PAGE = 64


@dataclass(frozen=True)
class Case:
    """Arguments of a kernel: what a row's text is, and pages where it lies."""

    asked: Projected
    keys: tuple[Any, Any]  # [P K page H], scales or None
    values: tuple[Any, Any]
    table: Any  # [B blocks] or None
    ends: Any  # [B]

    def arguments(self) -> tuple[Any, ...]:
        return (self.asked, self.keys, self.values, self.table, self.ends)


def projected(q: Any, k: Any, v: Any, positions: Any) -> Projected:
    """Queries [B T N H], keys and values [B T K H] as they are: nothing is left to do with them."""
    grouped = q.reshape(*k.shape[:3], -1, k.shape[-1])
    qkv = jnp.concatenate([grouped, k[..., None, :], v[..., None, :]], axis=3)
    still = jnp.zeros((*positions.shape, 1, q.shape[-1] // 2), jnp.float32)
    return Projected(qkv, Where(positions, (still + 1, still), None))


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype(np.float32)
    scale = np.abs(x).max(-1) / np.float32(127)
    return np.round(x / np.where(scale > 0, scale, 1)[..., None]).astype(np.int8), scale


def make(
    seed: int,
    fills: list[int],
    *,
    length: int = 1,
    heads: int = 2,
    groups: int = 1,
    size: int = 32,
    blocks: int = 4,
    cache: str = "float32",
    dtype: str = "float32",
    own: bool = False,
    real: list[int] | None = None,
    turned: bool = False,
    norms: bool = False,
) -> Case:
    """Rows that hold `fills` tokens and get `length` more, `real` of them no padding.

    own: every row has one long page. What is not written is NaN, and 127 with int8. turned: heads
    are yet to be turned, and queries scaled; norms: and normed before.
    """
    random = np.random.default_rng(seed)
    batch, page = len(fills), PAGE * blocks if own else PAGE
    columns = 1 if own else blocks
    pages = batch * columns + (0 if own else 3)
    table = np.arange(batch)[:, None] if own else random.permutation(pages)[: batch * blocks]
    table = table.reshape(batch, columns).astype(np.int32)
    normal = lambda *shape: np.asarray(random.standard_normal(shape), np.float32)
    positions = np.array(fills)[:, None] + np.arange(length)
    counts = np.array([length] * batch if real is None else real)
    ends = np.where(counts > 0, np.array(fills) + counts, 0)

    def store() -> tuple[Any, Any]:
        data, scale = np.full((pages, heads, page, size), np.nan, np.float32), None
        if cache == "int8":
            data = np.full(data.shape, 127, np.int8)
            scale = np.full(data.shape[:3], np.nan, np.float32)
        for b, fill in enumerate(fills):
            for at in range(min(fill, columns * page)):
                where = table[b, at // page], slice(None), at % page
                if scale is None:
                    data[where] = normal(heads, size)
                else:
                    data[where], scale[where] = rounded(normal(heads, size))
        kind = jnp.dtype(cache)
        return jnp.asarray(data, kind), None if scale is None else jnp.asarray(scale)

    draw = lambda *shape: jnp.asarray(normal(*shape), dtype)
    q = draw(batch, length, heads * groups, size)
    k, v = (draw(batch, length, heads, size) for _ in range(2))
    asked = projected(q, k, v, jnp.asarray(positions, jnp.int32))
    if turned:
        angles = jnp.asarray(normal(batch, length, 1, size // 2))
        factor = jnp.asarray(1 + np.abs(normal(batch, length, 1, 1)))
        where = Where(asked.where.positions, (jnp.cos(angles), jnp.sin(angles)), factor)
        asked = replace(asked, where=where)
    if norms:
        q_norm, k_norm = (RMSNorm(draw(size), 1e-6) for _ in range(2))
        asked = replace(asked, q_norm=q_norm, k_norm=k_norm)
    return Case(
        asked,
        store(),
        store(),
        None if own else jnp.asarray(table),
        jnp.asarray(ends, jnp.int32),
    )


def heads_of(asked: Projected) -> tuple[np.ndarray, list[np.ndarray]]:
    """Queries [B T K G H] as float64, new keys and values [B T K H] rounded as the product is."""
    wide = lambda x: np.asarray(x.astype(jnp.float32), np.float64)
    rounded = lambda x: wide(jnp.asarray(x, asked.qkv.dtype))
    qkv = wide(asked.qkv)
    q, k, v = qkv[..., :-2, :], qkv[..., -2:-1, :], qkv[..., -1, :]
    cos, sin = (wide(x)[:, :, None] for x in asked.where.angles)

    def turn(x: np.ndarray, norm: Any) -> np.ndarray:
        if norm is not None:
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
            x = rounded(rounded(x) * wide(norm.scale))
        a, b = np.split(x, 2, axis=-1)
        return rounded(np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1))

    q, k = turn(q, asked.q_norm), turn(k, asked.k_norm)
    if asked.where.query_scale is not None:
        q = rounded(q * rounded(wide(asked.where.query_scale))[:, :, None])
    return q, [k[..., 0, :], v]


def answer(case: Case) -> tuple[np.ndarray, list[Any]]:
    """What queries get [B T K G H], NaN for padding, and the stores after the call."""
    query, new = heads_of(case.asked)
    batch, length = query.shape[:2]
    page = case.keys[0].shape[2]
    table = np.arange(batch)[:, None] if case.table is None else np.asarray(case.table)
    positions, ends = np.asarray(case.asked.where.positions), np.asarray(case.ends)
    room = table.shape[1] * page
    stores: list[Any] = []
    for (data, scale), x in zip((case.keys, case.values), new, strict=True):
        data, scale = np.array(data), None if scale is None else np.array(scale)
        for b, t in np.ndindex(batch, length):
            at = positions[b, t]
            if at >= min(ends[b], room):
                continue
            where = table[b, at // page], slice(None), at % page
            row = x[b, t].astype(np.float32)
            if scale is None:
                data[where] = row.astype(data.dtype)
            else:
                data[where], scale[where] = rounded(row)
        stores.append((data, scale))
    y = np.full(query.shape, np.nan)
    for b in range(batch):
        wide = []
        for data, scale in stores:
            x = data[table[b]].astype(np.float64)
            x = x if scale is None else x * scale[table[b]][..., None]
            wide.append(np.moveaxis(x, 0, 1).reshape(x.shape[1], room, -1))
        for t in range(length):
            if positions[b, t] >= ends[b]:
                continue
            n = min(positions[b, t] + 1, room)
            scores = np.einsum("KGH,KSH->KGS", query[b, t], wide[0][:, :n])
            weights = np.exp((scores - scores.max(-1, keepdims=True)) * query.shape[-1] ** -0.5)
            weights /= weights.sum(-1, keepdims=True)
            y[b, t] = np.einsum("KGS,KSH->KGH", weights, wide[1][:, :n])
    return y, stores


def only(case: Case, row: int) -> Case:
    """One row of a call."""
    cut = lambda x: x[row : row + 1]
    asked = replace(case.asked, qkv=cut(case.asked.qkv), where=jax.tree.map(cut, case.asked.where))
    alone = replace(case, asked=asked, ends=cut(case.ends))
    if case.table is not None:
        return replace(alone, table=cut(case.table))
    pair = lambda pair: (cut(pair[0]), None if pair[1] is None else cut(pair[1]))
    return replace(alone, keys=pair(case.keys), values=pair(case.values))
