"""Small runs of `python -m train`, and what they leave behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from train.settings import TrainConfig

PATIENCE = 240  # seconds, on a busy machine
ROOT = Path(__file__).parents[2]
# The bundled model's steps take half the time, and are compiled once for all processes.
FASTER = os.environ["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
LINES = [
    ("你好", "你好！我是一个小小的语言模型。"),
    ("Who are you?", "A small model."),
    ("再见", "再见！"),
    ("What is one and one?", "It is two."),
]
SMALL: dict[str, Any] = {
    "model": "demo",
    "max_length": 64,
    "batch_size": 8,
    "micro_batch": 1,
    "rank": 4,
    "learning_rate": 1e-3,
    "steps": 20,
    "dtype": "float32",
    "remat": "none",
}


def chats(file: Path, count: int = 60) -> str:
    """Conversations of several lengths, each with its own number in it."""
    items = [
        {
            "conversations": [
                {"from": "user", "value": f"{ask} {n}"},
                {"from": "assistant", "value": say},
            ]
        }
        for n in range(count)
        for ask, say in [LINES[n % len(LINES)]]
    ]
    file.write_text(json.dumps(items, ensure_ascii=False), "utf-8")
    return str(file)


def small(folder: Path, **more: Any) -> TrainConfig:
    """LoRA on the bundled model, with dropout and packing, in folder/out."""
    data = (chats(folder / "chats.json"),)
    return TrainConfig(**SMALL | {"data": data, "out": str(folder / "out")} | more)


def log(settings: TrainConfig) -> list[dict[str, Any]]:
    lines = (Path(settings.out) / "log.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses(settings: TrainConfig) -> list[float]:
    records = log(settings)
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def arguments(settings: TrainConfig) -> list[str]:
    """The command line that says the same."""
    line = []
    for name, value in vars(settings).items():
        if value != getattr(TrainConfig, name, None):
            words = value if isinstance(value, tuple) else (value,)
            line += [f"--{name.replace('_', '-')}", *map(str, words)]
    return line


def command(
    settings: TrainConfig,
    devices: int = 1,
    start: tuple[Any, ...] = ("-m", "train"),
    **environment: str,
) -> Any:
    """The command in a process of its own, its output as text; `finish` waits for it."""
    out = Path(settings.out)
    shared = {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": FASTER}
    return subprocess.Popen(
        [sys.executable, *start, *arguments(settings)],
        cwd=out.parent,
        env=os.environ | shared | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    """The exit code and the output of each."""
    try:
        outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


# The command, to which a signal comes while it makes a step, or before a checkpoint has its name.
SIGNALLED = """
import os, runpy, signal, sys
from orbax.checkpoint._src.path import atomicity
from train.step import Trainer
numbers, how, step = iter(range(1, 1000)), os.environ["HOW"], int(os.environ["STEP"])
make, name = Trainer.step, atomicity.AtomicRenameTemporaryPath.finalize
def signalled(self, state, batch):
    if next(numbers) == step and how in ("SIGTERM", "SIGINT"):
        os.kill(os.getpid(), getattr(signal, how))
    return make(self, state, batch)
async def killed(self, *arguments, **more):
    if how == "SIGKILL" and self.get_final().name == str(step):
        os.kill(os.getpid(), signal.SIGKILL)
    return await name(self, *arguments, **more)
Trainer.step, atomicity.AtomicRenameTemporaryPath.finalize = signalled, killed
sys.argv[0] = "train"
runpy.run_module("train", run_name="__main__")
"""


def signalled(settings: TrainConfig, how: str, step: int) -> tuple[int, str, str]:
    (end,) = finish(command(settings, start=("-c", SIGNALLED), HOW=how, STEP=str(step)))
    return end
