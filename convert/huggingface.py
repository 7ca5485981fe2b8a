"""A checkpoint folder in Hugging Face's layout: read without trust, all faults named at once."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.modules import INTEGERS, Module, find_formats, find_modules, find_packing
from convert.packed import Packing
from convert.source import INDEX
from qwen_jax.checkpoint import read_defaults, vocabulary_problems
from qwen_jax.config import Config, notices
from qwen_jax.files import strict_json
from qwen_jax.files.problems import Problems
from qwen_jax.files.strict_json import Kind, StrictObject, tabled
from qwen_jax.nn.quant import FIELDS, Format, abstract_leaves
from qwen_jax.nn.tree import FLOATS
from qwen_jax.storage import pooling_config
from qwen_jax.storage.hf_names import (
    HEAD,
    TensorView,
    as_stored,
    is_harmless,
    tensor_views,
    tied_head,
)
from qwen_jax.storage.native import mismatches
from qwen_jax.storage.native_layout import MANIFEST
from qwen_jax.storage.safetensors_file import Shard, Tensor, read_shard
from qwen_jax.text import vocabulary
from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint.

    shards: by file name. packing: of its quantised layers, None if it has none. formats: of ours.
    leaves: which parts make up each of ours. extra: the file of its vocabulary that lies elsewhere.
    notices: what its files ask for and is read otherwise. vocabulary: of its tokenizer, None
    without one.
    """

    folder: Path
    model_type: str
    config: Config
    shards: dict[str, Shard]
    packing: Packing | None
    formats: dict[str, Format] = field(default_factory=dict)
    leaves: dict[str, list[TensorView]] = field(default_factory=dict)
    extra: Path | None = None
    notices: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: t for shard in self.shards.values() for name, t in shard.tensors.items()}

    def tensor(self, name: str) -> np.ndarray:
        """A view of the file that holds it; "MODULE:codes" and its like are unpacked."""
        module, _, kind = name.partition(":")
        if kind and self.packing is not None:
            return self.packing.field(kind, lambda tensor: self.tensor(f"{module}.{tensor}"))
        for shard in self.shards.values():
            if name in shard.tensors:
                return shard.read(name)
        raise KeyError(name)

    def stored(self, name: str) -> Tensor:
        """What the file says of a tensor; of "MODULE:codes", what it says of its scales."""
        module, packed, _ = name.partition(":")
        return self.tensors[f"{module}.scales" if packed else name]

    def leaf(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """One of our arrays; a view of the file where one tensor, unchanged, is all of it."""
        leaf = np.empty(shape, dtype)  # no memory until it is written to
        for part in self.leaves[name]:
            target, tensor = part.views(leaf, self.tensor(part.tensor))
            if target.shape == leaf.shape:
                return np.require(cast(tensor, dtype, part.tensor), requirements="A")
            target[...] = cast(tensor, dtype, part.tensor)
        return leaf


def cast(tensor: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """tensor in another dtype; ValueError if a number does not fit."""
    if tensor.dtype == dtype:
        return tensor
    if dtype == ml_dtypes.int4:  # in NumPy the low half of a byte; astype takes ten times as long
        return (tensor & np.int8(15)).view(dtype)
    with np.errstate(over="ignore"):
        made = tensor.astype(dtype)
    if dtype == np.float16 and not np.array_equal(np.isfinite(made), np.isfinite(tensor)):
        raise ValueError(f"{name} has values beyond float16's 65504; use bfloat16 or float32")
    return made


def is_same(leaf: np.ndarray, tensor: np.ndarray) -> bool:
    """Whether all bits agree, after rounding the tensor to the leaf's dtype; a slab at a time."""
    rows = max(1, (64 << 20) // max(1, tensor[0].nbytes))
    bits = f"u{leaf.dtype.itemsize}"
    for i in range(0, len(tensor), rows):
        slab = cast(tensor[i : i + rows], leaf.dtype, "")
        if not np.array_equal(leaf[i : i + rows].view(bits), slab.view(bits)):
            return False
    return True


def read(folder: Path, mixed: bool = False, extra: Path | None = None) -> Checkpoint:
    """Check everything but the numbers. Raises ValueError with all problems.

    mixed: parts of one of our arrays may differ in dtype. extra: an extra vocabulary for v1.
    """
    problems = Problems()
    if (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is a native checkpoint already; qwen_jax.load reads it")
    raw: dict[str, Any] = {}
    with problems.catch():
        raw = strict_json.read(folder / "config.json")
    shards = _read_shards(folder, problems)
    config = packing = None
    if raw:
        with problems.catch():
            config = Config.from_hf(raw)
        with problems.catch():
            packing = find_packing(folder, raw)
    if config is None or problems:  # without these there is nothing to compare with
        problems.stop(f"{folder} cannot be converted")
    assert config is not None
    found = Checkpoint(folder, raw["model_type"], config, shards, packing, extra=extra)
    made = _match(dataclasses.replace(found, notices=tuple(notices(raw))), problems, mixed)
    with problems.catch():
        words = vocabulary.read(folder, extra)
        problems.add(*vocabulary_problems(Tokenizer(words) if words else None, config))
        made = dataclasses.replace(made, vocabulary=words)
    with problems.catch():
        read_defaults(folder)
    with problems.catch():
        pooling_config.read(folder)
    problems.stop(f"{folder} cannot be converted")
    return made


# --- files ------------------------------------------------------------------------------------
def _read_shards(folder: Path, problems: Problems) -> dict[str, Shard]:
    """The sound files of weights. With an index, those it names, and they hold what it says."""
    index: dict[str, str] = {}
    names = ["model.safetensors"]
    if (folder / INDEX).is_file():
        with problems.catch():
            index = _read_index(folder / INDEX)
        names = sorted(set(index.values()))
    elif not (folder / names[0]).is_file():
        problems.add(_why_no_weights(folder))
        return {}
    shards = {}
    for name in names:
        with problems.catch():
            shards[name] = read_shard(folder / name)
    owners: dict[str, str] = {}
    for name, shard in shards.items():
        for tensor in shard.tensors:
            if tensor in owners:
                problems.add(f"{tensor} is in {owners[tensor]} and again in {name}")
            elif index and tensor not in index:
                problems.add(f"{tensor} is in {name}, but not in {INDEX}")
            owners[tensor] = name
    for tensor, name in index.items():
        if name in shards and tensor not in shards[name].tensors:
            problems.add(f"{INDEX} places {tensor} in {name}, which does not hold it")
    return shards


def _read_index(path: Path) -> dict[str, str]:
    """tensor -> file name: a plain one, since an index must not reach outside its folder."""
    index = StrictObject(path.name, strict_json.read(path))
    table = index.take(tabled(_FILE), "weight_map")
    if not table and not index.problems:
        index.wrong("weight_map", table, "a file for every tensor")
    index.stop()
    return table


_FILE = Kind(
    "the name of a file, NAME.safetensors",
    lambda name: isinstance(name, str) and bool(re.fullmatch(r"[\w-][\w.-]*\.safetensors", name)),
    "",
)


def _why_no_weights(folder: Path) -> str:
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pth"))
    if not pickles:
        return f"there is no model.safetensors and no {INDEX}"
    return (
        f"there is no model.safetensors; {pickles[0]} is a pickle, which can run any program when "
        "it is read. Take a revision with safetensors files, or, where you trust the file, write "
        "them with transformers: model.save_pretrained(FOLDER, safe_serialization=True)"
    )


# --- tensors ----------------------------------------------------------------------------------
def _untied(checkpoint: Checkpoint, embed: list[TensorView]) -> list[str]:
    """A head that is stored, though the config says it repeats the embedding, must do so."""
    first, *rest = (checkpoint.tensor(part.tensor) for part in embed)
    same = all(is_same(first, tensor) for tensor in rest)
    return [] if same else [f"config.json ties {HEAD} to the embedding, but the two differ"]


def _match(checkpoint: Checkpoint, problems: Problems, mixed: bool) -> Checkpoint:
    """Hold the tensors against the network: names, shapes, dtypes. Adds formats and leaves."""
    tensors = checkpoint.tensors
    shapes = {n: t.shape for n, t in tensors.items() if not is_harmless(n)}
    wanted = as_stored(tensor_views(checkpoint.config, checkpoint.model_type), tensors)
    if checkpoint.config.tied and HEAD in tensors:
        wanted[HEAD] = tied_head(wanted)
    modules: list[Module] = []
    with problems.catch():
        linear = [part for part in wanted.values() if part.leaf.endswith(".kernel")]
        modules = find_modules(checkpoint.packing, linear, tensors)
    expected = {name: part.shape for name, part in wanted.items()}
    for module in modules:
        del expected[module.part.tensor]
        with problems.catch():
            expected |= module.tensors(tensors)
    problems.add(*mismatches(expected, shapes))
    for name in shapes:
        allowed = ("int32",) if name.endswith(INTEGERS) else FLOATS
        if (got := tensors[name].dtype.name) not in allowed:
            problems.add(f"{name} has dtype {got}, expected {', '.join(allowed)}")
    if problems:
        return checkpoint
    formats = find_formats(modules, checkpoint.tensor, problems)
    for name in expected.keys() - wanted.keys():
        if name.endswith(".bias") and checkpoint.tensor(name).any():
            problems.add(f"{name} is not zero, but this network has no bias there")
    if problems:
        return checkpoint
    made = dataclasses.replace(checkpoint, formats=formats)
    plain = [part for part in wanted.values() if part.tensor in expected]
    packed = [part for module in modules for part in module.parts(formats[module.layer])]
    leaves: dict[str, list[TensorView]] = {n: [] for n in abstract_leaves(made.config, formats)}
    for part in plain + packed:
        leaves[part.leaf].append(part)
    for name, group in leaves.items():
        is_cast = mixed and name.rpartition(".")[2] not in FIELDS
        if not is_cast and len({made.stored(part.tensor).dtype for part in group}) > 1:
            problems.add(
                f"{', '.join(p.tensor for p in group)} differ in dtype, and are one {name} here; "
                "give --dtype"
            )
    made = dataclasses.replace(made, leaves=leaves)
    if not problems:
        problems.add(*_untied(made, leaves["embed"]))
    return made
