"""When a run stops; and several processes and devices that make one curve."""

import os
import random
import signal
import socket
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import train
from tests.train.runs import SIGNALLED, command, finish, losses, signalled, small
from train.settings import TrainConfig
from train.stop import Stop

STEPS = 10


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_a_second_ctrl_c_insists(first: Any) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), first)
        assert stop.reached(2)
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers say it more than once
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_ctrl_c_of_one_process_is_said_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax tells the others of a SIGTERM, and of nothing else."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with Stop():
            os.kill(os.getpid(), signal.SIGINT)
            assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


# --- one curve, however it is computed ---------------------------------------------------------
def two_processes(settings: Any, how: str = "none", step: int = 0) -> list[tuple[int, str, str]]:
    """The command in two processes of two devices each; the second gets a signal."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    named = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        command(
            settings,
            devices=2,
            start=("-c", SIGNALLED),
            HOW=how if rank else "none",
            STEP=str(step),
            JAX_PROCESS_ID=str(rank),
            **named,
        )
        for rank in range(2)
    ]
    return finish(*processes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """STEPS on one device, at once."""
    settings = small(tmp_path_factory.mktemp("one"), steps=STEPS, save_every=3)
    ((code, _, err),) = finish(command(settings))
    assert code == 0, err
    return settings


@pytest.fixture(scope="module")
def curve(whole: TrainConfig) -> list[float]:
    return losses(whole)


def test_killed_and_called_again(whole: TrainConfig, tmp_path: Path) -> None:
    """SIGKILL in the middle of a save, then Ctrl-C, and nothing is lost; SIGTERM comes below."""
    parts = small(tmp_path, steps=STEPS, save_every=3)
    code, _, err = signalled(parts, "SIGKILL", 6)
    assert code == -9, err
    folder = Path(parts.out) / "checkpoints"
    assert (folder / "3").is_dir()
    assert not (folder / "6").exists()
    assert any(path.name.startswith("6.") for path in folder.iterdir())
    more = random.randint(2, 6)  # in the first step it would end at once
    code, _, err = signalled(parts, "SIGINT", more)
    assert code == 0, err
    done = 3 + more
    wanted = f"stopped after step {done} of {STEPS}, and saved; the same command goes on from there"
    assert err.splitlines()[-1] == wanted
    assert (folder / str(done)).is_dir()
    assert len(losses(parts)) == done
    ((code, _, err),) = finish(command(parts))
    assert code == 0, err
    assert f"going on after step {done} of {STEPS} steps" in err
    assert losses(parts) == losses(whole)
    assert len(losses(parts)) == STEPS
    saved = [Path(s.out) / "adapter" / "adapter_model.safetensors" for s in (parts, whole)]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_eight_devices(curve: Any, tmp_path: Path) -> None:
    """Along all axes; test_step has meshes along each."""
    settings = small(tmp_path, steps=STEPS, mesh_data=2, mesh_fsdp=2, mesh_tensor=2)
    train.fine_tune(settings)
    np.testing.assert_allclose(losses(settings), curve, rtol=1e-5)


def test_two_processes(curve: Any, tmp_path: Path) -> None:
    """One of them gets a SIGTERM: both save the same step, and both go on from it."""
    settings = small(tmp_path, steps=STEPS, mesh_data=2, mesh_tensor=2, micro_batch=2)
    ends = two_processes(settings, "SIGTERM", 3)
    assert [code for code, _, _ in ends] == [0, 0], ends
    done = len(losses(settings))
    assert 3 <= done < STEPS
    assert f"stopped after step {done} of {STEPS}" in ends[0][2]
    assert "step" not in ends[1][2]  # only the first speaks
    ends = two_processes(settings)
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "4 cpu devices of 2 processes" in ends[0][2]
    np.testing.assert_allclose(losses(settings), curve, rtol=1e-5)
