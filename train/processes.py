"""What the processes of a run tell each other outside of a step; one alone talks to nobody."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def share(count: int) -> range:
    """This process's part of `count` things; the parts in the order of processes are the whole."""
    size = -(-count // jax.process_count())
    start = min(jax.process_index() * size, count)
    return range(start, min(start + size, count))


def gather(data: bytes) -> list[bytes]:
    """What every process has, in their order; all of them must ask."""
    if jax.process_count() == 1:
        return [data]
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]
