"""From a native folder back to a Hugging Face checkpoint, the files it came from."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.modules import INTEGERS, Module, choose_packing, find_packing, to_config
from convert.packed import Packing
from convert.progress import Progress
from convert.source import INDEX, QUANTISED
from qwen_jax import model_folder
from qwen_jax.adapters import attach, peft
from qwen_jax.config import Config
from qwen_jax.files import atomic, sizes, strict_json
from qwen_jax.files.problems import Problems
from qwen_jax.files.strict_json import OBJECT, StrictObject
from qwen_jax.nn.quant import Format, formats_of
from qwen_jax.storage import native
from qwen_jax.storage.hf_names import HEAD, TensorView, as_stored, tensor_views, tied_head
from qwen_jax.storage.native import Manifest
from qwen_jax.storage.safetensors_file import NAMES, Shard, write, write_header
from qwen_jax.text import vocabulary_file

LARGEST_SHARD = 5_000_000_000  # bytes, where there is no original to follow


Change = Callable[[str, np.ndarray], np.ndarray]  # a leaf's name and what it holds -> the same


@dataclass(frozen=True)
class Table:
    """What the tensors of a checkpoint are made of.

    views: those that are views of a leaf. modules: those that are packed. tensors: all of them, in
    order.
    """

    views: dict[str, TensorView]
    modules: list[Module]
    tensors: dict[str, tuple[np.dtype, tuple[int, ...]]]


def to_hf(
    native_folder: str | Path,
    out: str | Path,
    adapter: str | Path | None = None,
    packing: str | None = None,
    shard_size: int | str | None = None,
) -> Path:
    """Write a native checkpoint as safetensors with the original's shards and files.

    adapter: a folder in PEFT's format to merge into the weights.
    packing: "gptq" or "awq", how to pack quantised layers; default, as they came, or as GPTQ.
    shard_size: the most bytes of a file, unless one tensor is longer; 5_000_000_000, or "5GB" as in
        transformers. Default, the original's files.
    out: must not exist; it is written as `<out>.partial` and renamed when it is whole.
    Raises FileNotFoundError or ValueError with everything that is wrong, or OSError.
    """
    out = Path(out)
    largest = None if shard_size is None else sizes.parse(shard_size)
    atomic.expect_free(out)
    folder = model_folder.find(native_folder)
    manifest = Manifest.read(folder)
    config = Config.from_hf(strict_json.read(folder / "config.json"))
    Problems(manifest.problems(folder, config)).stop(f"{folder} cannot be converted")
    raw, formats = strict_json.read(folder / "config.json"), formats_of(manifest.leaves)
    change: Change = lambda _, leaf: leaf
    if adapter is not None:
        if formats:
            raise ValueError(
                f"{folder} is quantised, and nothing can be merged into integers; merge the "
                "adapter into the model that is not, or give it to qwen_jax.load as it is"
            )
        change = attach.merger(peft.read(adapter), config, manifest.model_type)
    found = find_packing(folder, raw)
    chosen = choose_packing(config, formats, found, packing)
    if chosen != found:  # the shards and the files it came with say otherwise
        manifest = dataclasses.replace(manifest, shards={})
    table = _table(manifest, config, formats, chosen)
    if largest is not None or not manifest.shards:
        manifest = dataclasses.replace(manifest, shards=_plan(table, largest or LARGEST_SHARD))
        stale = {INDEX}  # it is written anew, if there is more than one file
    else:
        stale = set()
    need = native.on_disk(native.size(manifest.leaves))
    atomic.check_room(out, need)
    title, pieces = f"writing {out}", len(native.by_piece(manifest.leaves))
    with (
        atomic.new_folder(out, need) as partial,
        Progress(title, native.size(manifest.leaves), pieces) as progress,
    ):
        for name in manifest.files.keys() - {vocabulary_file.NAME}:
            if name not in stale and (name not in QUANTISED or chosen == found):
                atomic.copy_file(folder / name, partial / name)
        if chosen != found:
            text = json.dumps(to_config(raw, chosen, formats), indent=2, ensure_ascii=False)
            (partial / "config.json").write_text(text + "\n", "utf-8")
        _write_tensors(folder, manifest, table, change, partial, progress)
        progress.finish(written=sizes.on_disk(partial))
    return out


def _table(
    manifest: Manifest, config: Config, formats: dict[str, Format], packing: Packing | None
) -> Table:
    """Every tensor; checked against the original files, if any."""
    stored = {name for shard in manifest.shards.values() for name in shard["tensors"]}
    table = as_stored(tensor_views(config, manifest.model_type), stored)
    if HEAD in stored and config.tied:
        table[HEAD] = tied_head(table)
    modules, tensors = [], {}
    for name, part in list(table.items()):
        layer = part.leaf.removesuffix(".kernel")
        if layer not in formats or layer == part.leaf:
            tensors[name] = manifest.leaves[part.leaf].dtype, part.shape
            continue
        assert packing is not None
        modules.append(Module(table.pop(name), packing))
        dtype = manifest.leaves[f"{layer}.scales"].dtype
        for tensor, shape in modules[-1].tensors(stored or {f"{modules[-1].name}.g_idx"}).items():
            if tensor not in table:
                kind = np.dtype(np.int32) if tensor.endswith(INTEGERS) else dtype
                tensors[tensor] = kind, shape
    if stored and stored != tensors.keys():
        raise ValueError(f"the manifest's shards differ in {sorted(stored ^ tensors.keys())}")
    return Table(table, modules, tensors)


def _plan(table: Table, largest: int) -> dict[str, dict[str, Any]]:
    """Shards of at most so many bytes, filled in the order of the network."""
    groups: list[dict[str, str]] = [{}]
    room = largest
    for name, (dtype, shape) in table.tensors.items():
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and size > room:
            groups.append({})
            room = largest
        groups[-1][name] = NAMES[dtype]
        room -= size
    count = len(groups)
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    return {
        name if count > 1 else "model.safetensors": {"metadata": {"format": "pt"}, "tensors": group}
        for name, group in zip(names, groups, strict=True)
    }


def _write_tensors(
    folder: Path,
    manifest: Manifest,
    table: Table,
    change: Change,
    partial: Path,
    progress: Progress,
) -> None:
    """Every piece is read once and its tensors go to their places in all the files."""
    files: dict[str, Shard] = {}  # by tensor
    for name, shard in manifest.shards.items():
        tensors = {tensor: table.tensors[tensor] for tensor in shard["tensors"]}
        files |= dict.fromkeys(tensors, write_header(partial / name, tensors, shard["metadata"]))
    _write_index(manifest, files, partial)
    pieces = native.by_piece(manifest.leaves)
    for piece, leaves in pieces.items():
        read = native.read_piece(folder, piece, leaves, manifest.pieces[piece])
        _write_piece(read, table, change, files)
        progress.advance(native.size(leaves))


def _write_piece(
    leaves: dict[str, np.ndarray], table: Table, change: Change, files: dict[str, Shard]
) -> None:
    """In a function, so that one piece is forgotten before the next is read."""
    for module in table.modules:
        if f"{module.layer}.codes" in leaves:
            for tensor, array in module.pack(leaves).items():
                if tensor in files:
                    write(files[tensor], tensor, array)
    for name in [*leaves]:
        leaf = change(name, leaves.pop(name))
        for tensor, view in table.views.items():
            if view.leaf == name:
                write(files[tensor], tensor, view.of(leaf))


def _write_index(manifest: Manifest, files: dict[str, Shard], partial: Path) -> None:
    """Where there are several files; the original's stands where it still tells the truth."""
    stored = dict(item for shard in manifest.shards.values() for item in shard["tensors"].items())
    made = {tensor: NAMES[shard.tensors[tensor].dtype] for tensor, shard in files.items()}
    copied, several = (partial / INDEX).is_file(), len({s.path for s in files.values()}) > 1
    if (copied and stored == made) or not (copied or several):
        return
    original = StrictObject.of(partial / INDEX)
    metadata = original.take(OBJECT, "metadata", default={})
    original.stop()
    sizes = (shard.tensors[t].stop - shard.tensors[t].start for t, shard in files.items())
    content = {
        "metadata": {**metadata, "total_size": sum(sizes)},
        "weight_map": {tensor: files[tensor].path.name for tensor in sorted(files)},
    }
    (partial / INDEX).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
