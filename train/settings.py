"""What a run is told to do, checked before anything that takes long."""

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen_jax.data import LossOn
from qwen_jax.files.problems import Problems
from qwen_jax.program import limits
from train.nn import Remat
from train.report import reporters

# these may change from one call of a run to the next: what comes out is the same
FREE = """out eval_data micro_batch mesh_data mesh_fsdp mesh_tensor remat save_every keep
    eval_every log_every report max_failures coordinator processes process""".split()
LOWEST: dict[str, float] = {  # numbers from here on make sense
    **dict.fromkeys("batch_size micro_batch rank group_size".split(), 1),
    "max_length": 2,
    **dict.fromkeys("save_every keep eval_every log_every max_failures steps".split(), 1),
    **dict.fromkeys("mesh_data mesh_fsdp mesh_tensor".split(), 1),
    **dict.fromkeys("weight_decay warmup dropout seed beta2".split(), 0),
}
GROUPS = {  # of --help, as docs/training.md has them
    "data": "model data eval_data max_length pack loss_on system out",
    "method": """method adapter rank alpha rslora dropout targets modules_to_save bits group_size
        dtype""",
    "optimisation": """epochs steps batch_size learning_rate schedule warmup weight_decay beta2 clip
        seed""",
    "device and memory": """micro_batch mesh_data mesh_tensor mesh_fsdp coordinator processes
        process remat""",
    "watching and saving": "save_every keep keep_best eval_every log_every report max_failures",
}
MOST_SEED = 2**32 - 1  # jax.random.key reads no more of it
OF_ADAPTERS = ("rank", "alpha", "dropout", "targets", "rslora", "modules_to_save")
POSITIVE = ("learning_rate", "clip", "alpha", "epochs")
BELOW_ONE = ("dropout", "beta2")


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a Qwen: LoRA, Q-LoRA or all of it. The same command again goes on where it stopped.

    Attributes:
        model: Folder that `qwen-jax convert` wrote, or "demo".
        data: Files and folders of conversations or texts.
        out: Folder of the run: its checkpoints, its log and what comes out.
        method: Weights to train: low-rank adapters, adapters over quantised weights, or everything.
        adapter: Folder of a PEFT adapter to start from, instead of fresh adapters.
        eval_data: Files and folders that are measured, not learnt.
        max_length: Longest sample in tokens; a longer one is cut.
        pack: Several samples in a row; they do not see each other.
        loss_on: Tokens that are learnt: "turns" for answers and the marks around each turn, as the
            original does; "assistant" for answers alone.
        system: System prompt of conversations that have none.
        extra_vocab_file: File of more tokens for an original Qwen, lines of base64 and id.
        epochs: Times that the data are seen.
        steps: Updates to make, instead of epochs.
        batch_size: Rows of an update, over all devices.
        micro_batch: Rows that a device works on at once; it changes memory, not results.
        mesh_data: Devices, or groups of them, that hold copies of the model and share the rows.
        mesh_fsdp: Devices that share the rows and the weights; by default, all that are left.
        mesh_tensor: Devices that share each matrix product.
        learning_rate: Highest learning rate; by default 3e-4 for adapters, 1e-5 for everything.
        schedule: Learning rate after the warm-up: a half cosine to zero, a line to zero, or no
            change.
        warmup: Part of the steps in which the learning rate rises.
        weight_decay: Weight decay of AdamW, on matrices.
        beta2: Decay rate of AdamW's second moments.
        clip: Largest norm of a gradient.
        rank: Rank of the adapters.
        alpha: Scale of the adapters, times their rank.
        dropout: Dropout rate on adapter inputs.
        targets: Layers that get adapters; by default, all linear layers of the blocks.
        rslora: Scale of alpha / sqrt(rank) instead of alpha / rank.
        modules_to_save: Modules to train whole beside the adapters: names, none, or auto:
            wte and lm_head of v1 base models, as the original.
        bits: Bits of a weight under Q-LoRA.
        group_size: Weights that share a scale under Q-LoRA.
        dtype: Type of the computation; by default, as the model is stored. float16 scales the loss.
        remat: What the backward pass computes again to save memory: no product (none), all but the
            linear layers' (dots), or all (full).
        save_every: Steps between checkpoints.
        keep: Number of the newest checkpoints to keep.
        keep_best: Checkpoint with the least held-out loss kept too, and exported.
        eval_every: Steps between measurements of eval_data; by default, save_every.
        log_every: Steps between lines of the log.
        report: Others that are told of what the log holds: none, tensorboard, wandb, or both.
        seed: Seed of the order of the data, fresh adapters and dropout.
        max_failures: Steps in a row without a finite gradient, after which the run stops.
        coordinator: HOST:PORT of process 0 in a run of several, or "auto" to ask the machines; by
            default, what the environment, Slurm or the TPU says.
        processes: Number of processes in the run.
        process: Number of this process, counted from 0.
    """

    model: str
    data: tuple[str, ...]
    out: str
    method: Literal["lora", "qlora", "full"] = "lora"
    adapter: str | None = None
    eval_data: tuple[str, ...] = ()

    max_length: int = 512
    pack: bool = True
    loss_on: LossOn = "turns"
    system: str | None = None
    extra_vocab_file: str | None = None

    epochs: float = 5
    steps: int | None = None
    batch_size: int = 16
    micro_batch: int = 2
    mesh_data: int = 1
    mesh_fsdp: int | None = None
    mesh_tensor: int = 1

    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.01
    weight_decay: float = 0.1
    beta2: float = 0.95
    clip: float = 1.0

    rank: int = 64
    alpha: float = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ()
    rslora: bool = False
    modules_to_save: tuple[str, ...] = ("auto",)
    bits: Literal[4, 8] = 4
    group_size: int = 128

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    remat: Remat = "full"

    save_every: int = 1000
    keep: int = 10
    keep_best: bool = False
    eval_every: int | None = None
    log_every: int = 1
    report: tuple[reporters.Name, ...] = ("tensorboard",)
    seed: int = 42
    max_failures: int = 5

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def check(self, devices: int | None = None) -> None:
        """Raise ValueError with everything that is wrong, on so many devices if they are known."""
        problems = [*self._numbers(), *self._choices(), *reporters.problems(self.report)]
        problems += self._files()
        sized = any(problem.startswith(("mesh", "batch", "micro")) for problem in problems)
        if devices is not None and not sized:
            problems += self._sizes(devices)
        Problems(problems).stop("these settings cannot be used")

    def _numbers(self) -> Iterator[str]:
        for name, value in vars(self).items():
            if value is None or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                yield f"{name} is {value}; give a number"
            elif name in LOWEST and value < LOWEST[name]:
                yield f"{name} is {value}; the least is {LOWEST[name]}"
            elif name in POSITIVE and value <= 0:
                yield f"{name} is {value}; it must be above 0"
            elif name in BELOW_ONE and value >= 1:
                yield f"{name} is {value}; it must be below 1"
        if self.seed > MOST_SEED:
            yield f"seed is {self.seed}; the most is {MOST_SEED}"
        if self.warmup > 1:
            yield f"warmup is {self.warmup}; it is a part of the steps, from 0 to 1"

    def _choices(self) -> Iterator[str]:
        """Options that need another one, or that nothing would read."""
        quantized = ("bits", "group_size")
        unread = {"full": (*OF_ADAPTERS, "adapter", *quantized), "lora": quantized, "qlora": ()}
        for name in unread[self.method]:
            if getattr(self, name) != default(name):
                yield f"{name} has no meaning with --method {self.method}; leave it out"
        for name in OF_ADAPTERS if self.adapter is not None and self.method != "full" else ():
            if getattr(self, name) != default(name):
                yield f"{name} has no meaning with --adapter, which has its own; leave it out"
        if self.steps is not None and self.epochs != default("epochs"):
            yield f"both steps ({self.steps}) and epochs ({self.epochs}) are given; leave one out"
        if not self.eval_data:
            for name in ("eval_every", "keep_best"):
                if getattr(self, name) != default(name):
                    yield f"{name} needs eval_data, the files to measure"
        elif self.keep_best and self.save_every % self.measure_every:
            yield (
                f"keep_best needs a measurement at each checkpoint: save_every {self.save_every} "
                f"is no multiple of eval_every {self.measure_every}"
            )

    def _files(self) -> Iterator[str]:
        if not self.data:
            yield "data names no file"
        for name in ("data", "eval_data"):
            for path in getattr(self, name):
                if not Path(path).exists():
                    yield f"{name}: there is no file or folder {path}"
        run = {name: getattr(self, name) for name in ("coordinator", "processes", "process")}
        yield from limits.problems(
            adapter=self.adapter, extra_vocab_file=self.extra_vocab_file, **run
        )
        parent = Path(self.out).absolute()
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            yield f"out: {parent} is a file; choose another folder"
        elif not os.access(parent, os.W_OK | os.X_OK):
            yield f"out: {parent} cannot be written to; choose another folder"

    def _sizes(self, devices: int) -> Iterator[str]:
        _, fsdp, _ = sizes = self.mesh_sizes(devices)
        made = math.prod(sizes)
        if made != devices:
            yield (
                f"mesh_data {self.mesh_data} x mesh_fsdp {fsdp} x mesh_tensor {self.mesh_tensor} "
                f"makes {made} devices, there are {devices}; "
                f"choose sizes whose product is {devices}"
            )
            return
        ways = self.mesh_data * fsdp
        if self.batch_size % ways:
            near = self.batch_size // ways * ways
            fits = " or ".join(str(size) for size in (near, near + ways) if size)
            yield (
                f"batch_size {self.batch_size} does not divide among mesh_data {self.mesh_data} x "
                f"mesh_fsdp {fsdp}; use {fits}, or more mesh_tensor"
            )
            return
        rows = self.batch_size // ways
        if rows % min(self.micro_batch, rows):
            fits = ", ".join(str(size) for size in range(1, rows + 1) if rows % size == 0)
            yield (
                f"micro_batch {self.micro_batch} does not divide a device's {rows} rows of a "
                f"batch; use one of {fits}"
            )

    @property
    def measure_every(self) -> int:
        """Steps between measurements of the held-out data."""
        return self.eval_every or self.save_every

    def mesh_sizes(self, devices: int) -> tuple[int, int, int]:
        """Of the axes data, fsdp and tensor of a mesh over so many devices."""
        return self.mesh_data, self._fsdp(devices), self.mesh_tensor

    def _fsdp(self, devices: int) -> int:
        return self.mesh_fsdp or max(1, devices // (self.mesh_data * self.mesh_tensor))

    def division(self, devices: int) -> tuple[int, int]:
        """Rows [A B] of an update: how often so many over all devices, before weights change."""
        ways = self.mesh_data * self._fsdp(devices)
        at_once = min(self.micro_batch * ways, self.batch_size)
        return self.batch_size // at_once, at_once

    def to_json(self) -> dict[str, Any]:
        """With lists for tuples, as they come back from a file."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    def differences(self, before: dict[str, Any]) -> list[str]:
        """What keeps a run from going on with these settings; before: an earlier `to_json`."""
        return [
            f"{name} was {before.get(name)!r}, now it is {value!r}"
            for name, value in self.to_json().items()
            if name not in FREE and before.get(name) != value
        ]


def default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(TrainConfig) if field.name == name)
