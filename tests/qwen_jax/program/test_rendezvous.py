"""How the processes of a run are found."""

from typing import Any

import jax
import pytest

from qwen_jax import distributed
from qwen_jax.program.rendezvous import coordinator_host, found

NAMED = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2"}
TPU = {"TPU_ML_PLATFORM": "JAX"}
ALONE = [
    {},
    NAMED | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"},  # a shell inside an allocation
    SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
    TPU | {"TPU_SKIP_MDS_QUERY": "1"},  # no chips
    TPU | {"TPU_WORKER_HOSTNAMES": "localhost"},
    {"TPU_WORKER_HOSTNAMES": "a,b"},  # a leftover: no TPU
]
FOUND = [
    SLURM,
    TPU,  # a TPU VM, whose metadata say
    TPU | {"TPU_WORKER_HOSTNAMES": "a,b"},
    TPU | {"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "localhost"},
    TPU | {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
]


@pytest.mark.parametrize("environment", ALONE)
def test_alone(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("it waits"))
    assert found(environment=environment) is None
    distributed.join(environment=environment)


@pytest.mark.parametrize("environment", FOUND)
def test_jax_finds_the_rest(environment: Any) -> None:
    assert found(environment=environment) == {}


def test_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3}
    assert found(environment=NAMED) == found(environment=NAMED | SLURM) == wanted
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: calls.append(how))
    monkeypatch.setattr(jax.config, "update", lambda *option: calls.append(option))
    distributed.join(environment=NAMED)
    assert calls == [("jax_cpu_collectives_implementation", "gloo"), wanted]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID missing; a run of several processes needs all"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_NUM_PROCESSES is '4' and JAX_PROCESS_ID '4'"),
        ({"JAX_NUM_PROCESSES": "many"}, "JAX_NUM_PROCESSES is 'many'"),
    ],
)
def test_half_named(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(environment=NAMED | changes)


def test_options_come_before_the_environment() -> None:
    wanted = {"coordinator_address": "other:1", "num_processes": 2, "process_id": 1}
    assert found("other:1", 2, 1, NAMED) == wanted
    assert found("other:1", 1, 0, NAMED) is None  # alone
    assert found("auto", environment=NAMED) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("host:1",), "belong together"),
        ((None, 2, 1), "belong together"),
        (("auto", 2, 1), "belong together"),
        (("host:1", 2, 2), "process is 2 of 2 processes; they count from 0"),
        (("host", 2, 1), "coordinator is 'host', wanted HOST:PORT or auto"),
    ],
)
def test_half_an_answer_of_options(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(*options)


def test_where_the_coordinator_is() -> None:
    assert coordinator_host("a:1", NAMED) == "a"
    assert coordinator_host(None, NAMED) == "host"
    assert coordinator_host("auto", {}) is None
