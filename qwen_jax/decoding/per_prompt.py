"""One value for every prompt of a batch, or a list of them."""

import secrets
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qwen_jax.program.limits import MAX_SEED


def each(value: Any, kind: type, count: int, name: str) -> list[Any]:
    """A value for each of so many prompts; ValueError for other numbers and kinds of them."""
    values = list(value) if isinstance(value, Sequence | np.ndarray) else [value] * count
    if len(values) != count:
        raise ValueError(f"got {len(values)} values for {name}, there are {count} prompts")
    for one in values:
        if isinstance(one, bool) or not isinstance(one, kind):
            raise ValueError(f"got {name} {one!r}, wanted {kind.__name__}, or one for each prompt")
    return values


def seeds_of(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Seeds of the prompts; fresh ones, the same in every process of a run, for None."""
    if seed is None:
        halves = np.frombuffer(secrets.token_bytes(8 * count), np.uint32).reshape(count, 2)
        if jax.process_count() > 1:
            halves = multihost_utils.broadcast_one_to_all(halves)
        return [int(high) << 32 | int(low) for high, low in halves]
    seeds = each(seed, Integral, count, "seed")
    for one in seeds:
        if not 0 <= one <= MAX_SEED:
            raise ValueError(f"got seed {one}, wanted 0 to {MAX_SEED}")
    return seeds
