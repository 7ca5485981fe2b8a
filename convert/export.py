"""From a native folder back to a Hugging Face checkpoint, the files it came from."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from convert.huggingface import TIED
from convert.native import check_room
from convert.progress import Progress
from convert.source import INDEX
from qwen_jax import adapters, native, peft
from qwen_jax.config import Config
from qwen_jax.names import Part, parts
from qwen_jax.native import Manifest
from qwen_jax.shard import NAMES, Shard, write, write_header

LARGEST_SHARD = 5_000_000_000  # bytes, where there is no original to follow


Change = Callable[[str, np.ndarray], np.ndarray]  # a leaf's name and what it holds -> the same


def to_hf(native_folder: str | Path, out: str | Path, adapter: str | Path | None = None) -> Path:
    """Write a native checkpoint as safetensors with the original's shards and files.

    adapter: a folder in PEFT's format to merge into the weights.
    out: must not exist; it is written as `<out>.partial` and renamed when it is whole.
    Raises FileNotFoundError or ValueError with everything that is wrong, or OSError.
    """
    folder, out = Path(native_folder), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another folder with --out or delete it")
    manifest = Manifest.read(folder)
    config = Config.from_hf(native.read_json(folder / "config.json"))
    if problems := manifest.problems(folder, config):
        raise ValueError("\n  ".join([f"{folder} cannot be converted:", *problems]))
    change: Change = lambda _, leaf: leaf
    if adapter is not None:
        change = adapters.merger(peft.read(adapter), config, manifest.model_type)
    table = _parts(manifest, config)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    check_room(partial.parent, native.on_disk(native.size(manifest.leaves)))
    try:
        partial.mkdir()
        for name in manifest.files:
            shutil.copyfile(folder / name, partial / name)
        _write_tensors(folder, manifest, table, change, partial)
        partial.rename(out)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if "No space left" in str(error):
            raise OSError(f"the disk of {out} is full; nothing was written") from error
        raise
    return out


def _parts(manifest: Manifest, config: Config) -> dict[str, Part]:
    """tensor -> how its leaf holds it; checked against the original files, if any."""
    table = {part.tensor: part for part in parts(config, manifest.model_type)}
    stored = {name for shard in manifest.shards.values() for name in shard["tensors"]}
    if TIED in stored and config.tied:
        embed = next(part for part in table.values() if part.leaf == "embed")
        table[TIED] = dataclasses.replace(embed, tensor=TIED)
    if stored and stored != table.keys():
        raise ValueError(f"the manifest's shards differ in {sorted(stored ^ table.keys())}")
    return table


def _plan(manifest: Manifest, table: dict[str, Part]) -> dict[str, dict[str, Any]]:
    """Shards for a checkpoint that never had any, filled in the order of the network."""
    groups: list[dict[str, str]] = [{}]
    room = LARGEST_SHARD
    for name, part in table.items():
        dtype = manifest.leaves[part.leaf].dtype
        size = math.prod(part.shape) * dtype.itemsize
        if groups[-1] and size > room:
            groups.append({})
            room = LARGEST_SHARD
        groups[-1][name] = NAMES[dtype]
        room -= size
    count = len(groups)
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    return {
        name if count > 1 else "model.safetensors": {"metadata": {"format": "pt"}, "tensors": group}
        for name, group in zip(names, groups, strict=True)
    }


def _write_tensors(
    folder: Path, manifest: Manifest, table: dict[str, Part], change: Change, partial: Path
) -> None:
    """Every piece is read once and its tensors go to their places in all the files."""
    shards = manifest.shards or _plan(manifest, table)
    files: dict[str, Shard] = {}  # by tensor
    for name, shard in shards.items():
        tensors = {
            tensor: (manifest.leaves[table[tensor].leaf].dtype, table[tensor].shape)
            for tensor in shard["tensors"]
        }
        files |= dict.fromkeys(tensors, write_header(partial / name, tensors, shard["metadata"]))
    _write_index(manifest, files, partial)
    pieces = native.by_piece(manifest.leaves)
    progress = Progress(f"writing {partial.with_suffix('')}", len(pieces))
    for piece, leaves in pieces.items():
        _write_piece(native.read_piece(folder, piece, leaves), table, change, files)
        progress.advance(native.size(leaves))
    progress.finish()


def _write_piece(
    leaves: dict[str, np.ndarray], table: dict[str, Part], change: Change, files: dict[str, Shard]
) -> None:
    """In a function, so that one piece is forgotten before the next is read."""
    for name in [*leaves]:
        leaf = change(name, leaves.pop(name))
        for tensor, part in table.items():
            if part.leaf != name:
                continue
            view, _ = part.views(leaf, np.empty(part.shape, leaf.dtype))
            write(files[tensor], tensor, view)


def _write_index(manifest: Manifest, files: dict[str, Shard], partial: Path) -> None:
    """The original index stands where it still tells the truth: the dtypes are as they were."""
    stored = dict(item for shard in manifest.shards.values() for item in shard["tensors"].items())
    made = {tensor: NAMES[shard.tensors[tensor].dtype] for tensor, shard in files.items()}
    several = len({shard.path for shard in files.values()}) > 1
    if stored == made or not (several or INDEX in manifest.files):
        return
    original = native.read_json(partial / INDEX) if INDEX in manifest.files else {}
    sizes = (shard.tensors[t].stop - shard.tensors[t].start for t, shard in files.items())
    content = {
        "metadata": {**original.get("metadata", {}), "total_size": sum(sizes)},
        "weight_map": {tensor: files[tensor].path.name for tensor in sorted(files)},
    }
    (partial / INDEX).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
