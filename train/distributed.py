"""Several processes as one run: which there are, and after which step they all stop."""

import os
import signal
import sys
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

NAMED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Join the processes of this run, if its environment names any; call it before all else.

    Known are the three variables above, Slurm's steps, and Cloud TPUs, on GKE too.
    """
    arguments = found(environment)
    if arguments is not None and not jax.distributed.is_initialized():
        # on accelerators nothing reads it; on CPUs no other library is built in
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**arguments)


def found(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of jax.distributed.initialize; None for a process that is alone."""
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


def _named(address: str, count: str, number: str) -> dict[str, Any] | None:
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise ValueError(
            f"JAX_NUM_PROCESSES is {count!r} and JAX_PROCESS_ID {number!r}; they are the number "
            "of processes and this one's, counted from 0"
        )
    if int(count) == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(number),
    }


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
    """End a process of several at once: the others, who wait for it, then fail instead of waiting.

    Returns in a process that is alone, or that ends well.
    """
    if not jax.distributed.is_initialized() or getattr(error, "code", 1) in (None, 0):
        return
    code = error.code if isinstance(error, SystemExit) else None
    if isinstance(code, str):
        print(code, file=sys.stderr)
    elif code is None:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


class Stop:
    """What SIGTERM and Ctrl-C ask for: a stop after a step that all processes agree on.

    Ctrl-C once more stops at once. In force inside `with`.
    """

    def __init__(self) -> None:
        self.asked = False
        self.alone = jax.process_count() == 1

    def __enter__(self) -> "Stop":
        # of several processes, jax watches each for SIGTERM
        signals = (signal.SIGINT, signal.SIGTERM) if self.alone else (signal.SIGINT,)
        self.before = {number: signal.signal(number, self._ask) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGINT:  # print cannot be interrupted by itself
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        if not self.alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop before this step; all processes ask, at every step."""
        if self.alone:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)
