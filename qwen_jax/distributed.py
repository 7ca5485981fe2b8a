"""Several processes as one run: how they are found, what they tell each other, how they end."""

import os
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

NAMED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
AUTO = "auto"


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Join the processes of this run, if there are others; call it before all else.

    coordinator: HOST:PORT of process 0, with the number of processes and this one's, from 0 on;
        "auto" has JAX ask the machines. Without it the environment says: the three variables of
        NAMED, Slurm's steps, and Cloud TPUs, on GKE too.
    Raises ValueError for half an answer.
    """
    arguments = found(coordinator, processes, process, environment)
    if arguments is not None and not jax.distributed.is_initialized():
        # on accelerators nothing reads it; on CPUs no other library is built in
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**arguments)


def found(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any] | None:
    """The arguments of jax.distributed.initialize; None for a process that is alone."""
    if problems := option_problems(coordinator, processes, process):
        raise ValueError("; ".join(problems))
    if coordinator == AUTO:
        return {}
    if coordinator is not None and processes is not None and process is not None:
        return _arguments(coordinator, processes, process)
    given = [name for name in NAMED if environment.get(name)]
    if len(given) == len(NAMED):
        return _named(*(environment[name] for name in NAMED))
    if given:
        missing = [name for name in NAMED if name not in given]
        raise ValueError(
            f"{' and '.join(given)} set, {' and '.join(missing)} missing; a run of several "
            "processes needs all three, a single process none of them"
        )
    return {} if _slurm(environment) or _cloud_tpu(environment) else None


def option_problems(
    coordinator: str | None, processes: int | None, process: int | None
) -> list[str]:
    """What is wrong with these options of a command."""
    counted = [processes is not None, process is not None]
    if any(counted) != (coordinator not in (None, AUTO)) or len({*counted}) > 1:
        return ["coordinator HOST:PORT, processes and process belong together"]
    problems = []
    if coordinator not in (None, AUTO) and not coordinator.rpartition(":")[2].isdecimal():
        problems.append(f"coordinator is {coordinator!r}, wanted HOST:PORT or {AUTO}")
    if processes is not None and process is not None and not 0 <= process < processes:
        problems.append(f"process is {process} of {processes} processes; they count from 0")
    return problems


def coordinator_host(
    coordinator: str | None, environment: Mapping[str, str] = os.environ
) -> str | None:
    """Where all processes reach process 0, if options or the environment say it."""
    address = environment.get(NAMED[0]) if coordinator in (None, AUTO) else coordinator
    return address.rpartition(":")[0] if address else None


def _named(address: str, count: str, number: str) -> dict[str, Any] | None:
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise ValueError(
            f"JAX_NUM_PROCESSES is {count!r} and JAX_PROCESS_ID {number!r}; they are the number "
            "of processes and this one's, counted from 0"
        )
    return _arguments(address, int(count), int(number))


def _arguments(address: str, count: int, number: int) -> dict[str, Any] | None:
    if count == 1:
        return None
    return {"coordinator_address": address, "num_processes": count, "process_id": number}


def _slurm(environment: Mapping[str, str]) -> bool:
    """Whether srun started this with others; a shell inside an allocation is alone."""
    return int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1


def _cloud_tpu(environment: Mapping[str, str]) -> bool:
    """jax, when it is imported, marks a machine with TPU chips, and one without any."""
    if "TPU_ML_PLATFORM" not in environment or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    names = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    hosts = next((environment[name] for name in names if environment.get(name)), None)
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    return hosts is None or "," in hosts or slices > 1  # None: a TPU VM, whose metadata say


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
