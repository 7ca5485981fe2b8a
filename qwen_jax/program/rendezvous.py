"""How the processes of a run find each other: by options, the environment, Slurm or a TPU."""

import os
from collections.abc import Mapping
from typing import Any

NAMED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
AUTO = "auto"


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
