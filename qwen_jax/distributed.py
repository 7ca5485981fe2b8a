"""Several processes as one run: how they join, what they tell each other, how they end."""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from qwen_jax.program import rendezvous

Made = TypeVar("Made")


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Join the processes of this run, if there are others; call it before all else.

    coordinator: HOST:PORT of process 0, with the number of processes and this one's, from 0 on;
        "auto" has JAX ask the machines. Without it the environment says: the three variables of
        `rendezvous.NAMED`, Slurm's steps, and Cloud TPUs, on GKE too.
    Raises ValueError for half an answer.
    """
    arguments = rendezvous.found(coordinator, processes, process, environment)
    if arguments is not None and not jax.distributed.is_initialized():
        # on accelerators nothing reads it; on CPUs no other library is built in
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**arguments)


def leave(error: BaseException) -> None:
    """End a process at once where leaving it to Python would wait without an end.

    A process of several: the others, who wait for it, then fail instead of waiting. One whose save
    failed: orbax's threads wait for its other parts. Returns in any other, or one that ends well.
    """
    waits = any(type(thread).__module__.startswith("orbax.") for thread in threading.enumerate())
    ends_well = getattr(error, "code", 1) in (None, 0)
    if ends_well or not (waits or jax.distributed.is_initialized()):
        return
    code = error.code if isinstance(error, SystemExit) else None
    if isinstance(code, str):
        print(code, file=sys.stderr)
    elif code is None:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


# --- what they tell each other outside of a step; one alone talks to nobody -------------------
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


def told_by_first(make: Callable[[], Made]) -> Made:
    """What process 0 makes, on all of them, as JSON keeps it; all of them must ask.

    Where it cannot, all of them raise: its own error there, a ValueError that says it elsewhere.
    """
    if jax.process_count() == 1:
        return make()
    said: dict[str, object] = {}
    failed: Exception | None = None
    if jax.process_index() == 0:
        try:
            said["made"] = make()
        except (ValueError, OSError) as error:
            failed = error
            said["failed"] = str(error)
    told = json.loads(gather(json.dumps(said).encode())[0])
    if failed is not None:
        raise failed
    if "failed" in told:
        raise ValueError(f"process 0 says: {told['failed']}")
    return told["made"]
