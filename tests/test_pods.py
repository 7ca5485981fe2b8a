"""The files of docs/pods: what they run is what the product takes, and Slurm's runs here."""

import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro
import yaml

from train.settings import TrainConfig

ROOT = Path(__file__).parent.parent
PODS = ROOT / "docs/pods"
NUMBER = random.randrange(4096)  # of a job; jax takes port 61440 and so many
CONVERSATION = """[{"conversations": [
    {"from": "user", "value": "hi"}, {"from": "assistant", "value": "hello"}]}]"""
SRUN = """#!/bin/bash
[[ -e skip ]] && exit 0
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit; done
"""
RECORD = """#!/bin/bash
printf '%s\\n' "$@" >> "{name}.log"
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A folder's bin before all other commands; of what tests set only how is compiled."""
    executable(tmp_path / "bin/python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    names = "HOME", "LANG", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"
    kept = {name: os.environ[name] for name in names if name in os.environ}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def settings(arguments: list[str], devices: int) -> TrainConfig:
    """As the command line reads them, on so many devices."""
    read = tyro.cli(TrainConfig, args=arguments)
    assert not [*read._numbers(), *read._choices(), *read._sizes(devices)]
    return read


@pytest.mark.parametrize("file", sorted(PODS.glob("*.sh")), ids=lambda file: file.name)
def test_scripts_parse(file: Path) -> None:
    subprocess.run(["bash", "-n", file], check=True)


def test_jobset() -> None:
    """Its hosts are its slice's, and its options ones of training."""
    (job,) = yaml.safe_load((PODS / "jobset.yaml").read_text())["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    across, down = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(across) * int(down)
    for count in container["resources"].values():
        assert chips == job["parallelism"] * count["google.com/tpu"]
    assert job["parallelism"] == job["completions"]
    assert settings(container["args"], chips).out == "runs/first"


def test_tpu_vm(tmp_path: Path, environment: dict[str, str]) -> None:
    """What it would run on every host."""
    executable(tmp_path / "bin/gcloud", RECORD.format(name=tmp_path / "gcloud"))
    command = [str(PODS / "tpu-vm.sh"), "train", "--seed", "7", "--system", "Be brief."]
    subprocess.run(command, env=environment | {"BUCKET": "b"}, check=True)
    remote = (tmp_path / "gcloud.log").read_text().splitlines()[-1]
    options = shlex.split(remote.partition(" -m train")[2])
    read = settings(options, 16)
    assert (read.seed, read.system) == (7, "Be brief.")


@pytest.fixture
def slurm(tmp_path: Path, environment: dict[str, str]) -> Callable[..., str]:
    """Run the script as sbatch would, with two tasks on this machine; what was told scontrol."""
    executable(tmp_path / "bin/srun", SRUN)
    executable(tmp_path / "bin/scontrol", RECORD.format(name="scontrol"))
    executable(tmp_path / "bin/activate", "")
    (tmp_path / "chats.json").write_text(CONVERSATION)
    tasks = {"NTASKS": 2, "STEP_NUM_TASKS": 2, "JOB_NUM_NODES": 1, "JOB_ID": NUMBER}
    variables = {f"SLURM_{name}": str(value) for name, value in tasks.items()}
    variables |= {"SLURM_STEP_NODELIST": "localhost", "VENV": str(tmp_path), "MODEL": "demo"}

    def submit(*options: str) -> str:
        command = ["bash", str(PODS / "slurm.sh"), *options]
        subprocess.run(command, env=environment | variables, cwd=tmp_path, check=True)
        log = tmp_path / "scontrol.log"
        return log.read_text() if log.exists() else ""

    return submit


def test_slurm(tmp_path: Path, slurm: Callable[..., str]) -> None:
    """Two processes train, and leave what one would."""
    small = "--max-length 64 --batch-size 2 --steps 1 --rank 2"
    assert slurm(*small.split()) == ""
    assert (tmp_path / "runs/first/adapter/adapter_config.json").exists()


def test_a_stopped_run_is_requeued(tmp_path: Path, slurm: Callable[..., str]) -> None:
    (tmp_path / "skip").touch()
    assert slurm().split() == ["requeue", str(NUMBER)]


def test_unless_finished(tmp_path: Path, environment: dict[str, str]) -> None:
    """A run that stopped without an error and without a result is not finished."""
    run = lambda: (
        subprocess.run(
            [PODS / "unless-finished.sh", "--out=runs/x"], env=environment, cwd=tmp_path
        ).returncode
    )
    executable(tmp_path / "bin/python", "#!/bin/bash\n[[ $* == '-m train --out=runs/x' ]]\n")
    assert run() == 1
    (tmp_path / "runs/x/adapter").mkdir(parents=True)
    assert run() == 0
    executable(tmp_path / "bin/python", "#!/bin/bash\nexit 3\n")
    assert run() == 3


def test_unless_finished_passes_sigterm_on(tmp_path: Path, environment: dict[str, str]) -> None:
    executable(
        tmp_path / "bin/python",
        "#!/bin/bash\ntrap 'mkdir -p runs/x/model; exit' TERM\ntouch started\n"
        "while :; do sleep 0.1; done\n",
    )
    script = [str(PODS / "unless-finished.sh"), "--out=runs/x"]
    process = subprocess.Popen(script, env=environment, cwd=tmp_path)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
    process.terminate()
    assert process.wait(20) == 0
