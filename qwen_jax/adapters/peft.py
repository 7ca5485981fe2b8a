"""Adapters as everyone exchanges them: PEFT folders, read without trust and written.

    adapter_config.json         how it was made
    adapter_model.safetensors   lora_A [R in] and lora_B [out R] of every adapted module, and the
                                tensors of modules that were trained whole
https://huggingface.co/docs/peft
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qwen_jax.adapters.peft_config import FILE, LoraConfig, ends, read_settings
from qwen_jax.files import atomic, strict_json
from qwen_jax.files.problems import Problems
from qwen_jax.nn.tree import FLOATS
from qwen_jax.storage import safetensors_file

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter by Hugging Face's names, rows in their order.

    deltas: module -> a [R in] and b [out R]. saved: tensor -> what takes the base's place.
    """

    settings: LoraConfig
    deltas: Mapping[str, tuple[Any, Any]]
    saved: Mapping[str, Any]


def read(folder: str | Path, most: int | None = None) -> Adapter:
    """An adapter in PEFT's format. Its arrays are views of the file.

    most: bytes that its tensors may have, which are in our memory then: nobody can cut them off.
    Raises FileNotFoundError, or ValueError with everything that is wrong.
    """
    folder = Path(folder)
    _expect_adapter(folder)
    file = safetensors_file.read_shard(folder / WEIGHTS)
    if most is not None and file.size > most:
        raise ValueError(
            f"{WEIGHTS} has {file.size} bytes of tensors, at most {most} are read here"
        )
    problems = Problems()
    matrices: dict[str, dict[str, np.ndarray]] = {}
    saved: dict[str, np.ndarray] = {}
    arrays = file.view_all() if most is None else file.read_all()
    for name, array in arrays.items():
        words = re.fullmatch(r"base_model\.model\.([\w.]+?)(?:\.(lora_[AB]))?\.(weight|bias)", name)
        if words is None or "lora_" in words[1] or (words[2] and words[3] == "bias"):
            problems.add(f"tensor {name:.200} is of a kind that is not supported")
        elif array.dtype.name not in FLOATS:
            problems.add(f"{name} is {array.dtype.name}, expected {', '.join(FLOATS)}")
        elif words[2]:
            matrices.setdefault(words[1], {})[words[2]] = array
        else:
            saved[f"{words[1]}.{words[3]}"] = array
    settings = read_settings(strict_json.read(folder / FILE), tuple(matrices))
    problems.add(*_faults(settings, matrices, saved))
    problems.stop(f"{folder} cannot be read")
    # PEFT stores a resized embedding without a word in the settings
    silent = {module: None for module in map(module_of, saved) if not settings.saves(module)}
    settings = dataclasses.replace(settings, modules_to_save=(*settings.modules_to_save, *silent))
    deltas = {module: (pair["lora_A"], pair["lora_B"]) for module, pair in matrices.items()}
    return Adapter(settings, deltas, saved)


def module_of(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _expect_adapter(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; an adapter is one that PEFT wrote")
    if not (folder / FILE).is_file():
        raise ValueError(f"{folder} is no adapter: it has no {FILE}")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} has no {WEIGHTS}; a .bin is a pickle, which can run any program when it is "
            "read. Where you trust it, load it with PEFT and write it again: "
            "model.save_pretrained(FOLDER, safe_serialization=True)"
        )


def _faults(
    settings: LoraConfig, matrices: Mapping[str, Any], saved: Mapping[str, Any]
) -> Iterator[str]:
    """What is wrong whatever the base."""
    if not matrices and not saved:
        yield f"{WEIGHTS} is empty"
    ranks = settings.ranks(matrices)
    for module, pair in matrices.items():
        rank = ranks[module]
        if len(pair) < 2:
            yield f"{module} has {next(iter(pair))} alone, expected lora_A and lora_B"
        elif [x.ndim for x in pair.values()] != [2, 2] or not (
            len(pair["lora_A"]) == pair["lora_B"].shape[1] == rank
        ):
            shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in sorted(pair.items()))
            yield f"{module} has {shapes}; {FILE} gives it rank {rank}"
    modules = {module_of(tensor) for tensor in saved}
    for module in sorted(modules & matrices.keys()):
        yield f"{module} is there twice, adapted and whole"
    for name in settings.modules_to_save:
        if not any(ends(name, module) for module in modules):
            yield (
                f"modules_to_save has {name!r}, whose tensors are not in {WEIGHTS}: they were lost "
                "when it was saved; look for a complete one among the training's checkpoints"
            )


def write(adapter: Adapter, folder: str | Path) -> None:
    """Write an adapter as PEFT does. The same adapter gives the same bytes.

    Every process of a run calls this; the folder is one they all see. It must not exist: it is
    written as `<folder>.partial` and renamed when it is whole.
    """
    first, meet = jax.process_index() == 0, multihost_utils.sync_global_devices
    arrays = [*adapter.saved.values(), *(x for pair in adapter.deltas.values() for x in pair)]
    need = sum(array.nbytes for array in arrays)
    with atomic.new_folder(Path(folder).absolute(), need, first=first, meet=meet) as partial:
        if first:
            _write(adapter, partial)


def _write(adapter: Adapter, folder: Path) -> None:
    text = json.dumps(adapter.settings.to_json(), indent=2)
    (folder / FILE).write_text(text, "utf-8")
    tensors = {PREFIX + name: array for name, array in adapter.saved.items()}
    for module, (a, b) in adapter.deltas.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b
    heads = {name: (np.dtype(tensors[name].dtype), tensors[name].shape) for name in sorted(tensors)}
    file = safetensors_file.write_header(folder / WEIGHTS, heads, {"format": "pt"})
    for name in heads:
        safetensors_file.write(file, name, np.asarray(tensors[name]))
