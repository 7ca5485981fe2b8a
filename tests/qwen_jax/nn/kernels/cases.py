"""Random calls of a kernel, and NumPy's answer to them in float64."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

PAGE = 64


@dataclass(frozen=True)
class Case:
    """Arguments of a kernel: what a row's text is, and pages where it lies."""

    query: Any  # [B T K G H]
    new: tuple[Any, Any]  # [B T K H]
    keys: tuple[Any, Any]  # [P K page H], scales or None
    values: tuple[Any, Any]
    table: Any  # [B blocks] or None
    positions: Any  # [B T]
    ends: Any  # [B]

    def arguments(self) -> tuple[Any, ...]:
        return (self.query, self.new, self.keys, self.values, self.table, self.positions, self.ends)


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
) -> Case:
    """Rows that hold `fills` tokens and get `length` more, `real` of them no padding.

    own: every row has one long page. What is not written is NaN, and 127 with int8.
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

    return Case(
        jnp.asarray(normal(batch, length, heads, groups, size), dtype),
        tuple(jnp.asarray(normal(batch, length, heads, size), dtype) for _ in range(2)),  # type: ignore[arg-type]
        store(),
        store(),
        None if own else jnp.asarray(table),
        jnp.asarray(positions, jnp.int32),
        jnp.asarray(ends, jnp.int32),
    )


def answer(case: Case) -> tuple[np.ndarray, list[Any]]:
    """What queries get [B T K G H], NaN for padding, and the stores after the call."""
    query = np.asarray(case.query, np.float64)
    batch, length = query.shape[:2]
    page = case.keys[0].shape[2]
    table = np.arange(batch)[:, None] if case.table is None else np.asarray(case.table)
    positions, ends = np.asarray(case.positions), np.asarray(case.ends)
    room = table.shape[1] * page
    stores: list[Any] = []
    for (data, scale), x in zip((case.keys, case.values), case.new, strict=True):
        data, scale = np.array(data), None if scale is None else np.array(scale)
        for b, t in np.ndindex(batch, length):
            at = positions[b, t]
            if at >= min(ends[b], room):
                continue
            where = table[b, at // page], slice(None), at % page
            row = np.asarray(x[b, t].astype(jnp.float32))
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
    alone = replace(
        case,
        query=cut(case.query),
        new=(cut(case.new[0]), cut(case.new[1])),
        positions=cut(case.positions),
        ends=cut(case.ends),
    )
    if case.table is not None:
        return replace(alone, table=cut(case.table))
    pair = lambda pair: (cut(pair[0]), None if pair[1] is None else cut(pair[1]))
    return replace(alone, keys=pair(case.keys), values=pair(case.values))
