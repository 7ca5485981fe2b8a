"""Who else is told of a run's steps: TensorBoard and Weights & Biases, where they are installed."""

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from qwen_jax.files import atomic, strict_json
from qwen_jax.program import arguments

Name = Literal["none", "tensorboard", "wandb"]
WANDB_RUN = "wandb.json"  # which run of W&B's a folder is


def problems(names: Sequence[str]) -> Iterator[str]:
    """What keeps them from being told."""
    if not names:
        yield "report names nobody; give none, tensorboard or wandb"
    if "none" in names and len(names) > 1:
        yield f"report is {' and '.join(names)}; give none alone, or leave it out"
    for name in KINDS:
        package, extra = KINDS[name].package, KINDS[name].extra
        if name in names and not arguments.installed(package):
            install = arguments.install(extra)
            yield f"report: {name} needs {package}, which is not installed; {install}"


class Reporter(Protocol):
    """One of them, told of the steps behind `done`; closed with whether the run failed."""

    package: str
    extra: str  # of pip, which has the package

    def __init__(self, folder: Path, done: int, settings: dict[str, Any]) -> None: ...
    def tell(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Events in folder/tensorboard; what it holds behind `done` is dropped when it is shown."""

    package, extra = "tensorboardX", "train"

    def __init__(self, folder: Path, done: int, settings: dict[str, Any]):
        # imports torch wherever it is installed: a second and 130 MB, in the process that writes
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """A run of W&B's, the same one in every call; its own environment variables hold.

    Steps that it was told of before a call was killed are made again with the same values, and it
    is not told of them twice. Raises ValueError where W&B cannot be reached or knows nobody.
    """

    package, extra = "wandb", "wandb"

    def __init__(self, folder: Path, done: int, settings: dict[str, Any]):
        import wandb

        number = _run_id(folder / WANDB_RUN)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "qwen_jax"),
                name=os.environ.get("WANDB_NAME", folder.name),
                id=number,
                resume="allow",
                dir=folder,
                config=settings,
                allow_val_change=True,
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"report: wandb says {reason!r}; log in with `wandb login`, keep the run here with "
                "WANDB_MODE=offline, or leave wandb out"
            ) from error

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _run_id(file: Path) -> str:
    """What W&B calls the run: drawn once, and kept."""
    if not file.exists():
        atomic.write_text(file, json.dumps({"id": secrets.token_hex(8)}))
    found = strict_json.read(file).get("id")
    if not isinstance(found, str) or not re.fullmatch(r"\w{1,64}", found):
        raise ValueError(f"{file} is damaged: it has no id; delete it, and a new W&B run begins")
    return found


KINDS: dict[str, type[Reporter]] = {"tensorboard": TensorBoard, "wandb": Wandb}


class Reporters:
    """All that a run was told to tell, inside `with`; in a process that writes nothing, none."""

    def __init__(self, names: Sequence[str], folder: Path, done: int, settings: dict[str, Any]):
        self._all = [KINDS[name](folder, done, settings) for name in KINDS if name in names]

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        for one in self._all:
            one.tell(step, values)

    def __enter__(self) -> "Reporters":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for one in self._all:
            one.close(failed=kind is not None)
