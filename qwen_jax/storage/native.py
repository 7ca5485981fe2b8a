"""The native format on disk: a folder whose arrays go straight to the shards of any mesh.

    manifest.json     what is here: every leaf's shape and dtype, a hash of every file and of the
                      manifest itself, and the Hugging Face shards that the leaves came from
    config.json, ...  Hugging Face's files as they came: generation defaults, tokenizer
    vocabulary.bin    the tokenizer's, in a form that loads at once
    weights/blocks.0.safetensors, ...  the leaves, a file for each piece of the network

A piece is a block, the embedding, the last norm or the head: what a converter holds at a time, and
what an interrupted conversion need not write again. Its file has a hash for every stretch of every
array, see `hashed_arrays`; the manifest has a hash of what the file says of itself.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.config import Config
from qwen_jax.files import atomic, strict_json
from qwen_jax.files.strict_json import SIZE, TEXT, StrictObject, choice, listed, shown, tabled
from qwen_jax.nn.quant import abstract_leaves, formats_of
from qwen_jax.nn.tree import FLOATS, INTEGERS
from qwen_jax.storage import hashed_arrays, int4, pooling_config
from qwen_jax.storage.hashed_arrays import Rows, digest, digest_file
from qwen_jax.storage.native_layout import MANIFEST, WEIGHTS, piece_file

FORMAT, VERSION = "qwen_jax", 2
AGAIN = "copy the folder again, or convert the checkpoint again"
_DTYPE = choice(*FLOATS, *INTEGERS)
T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Manifest:
    """What a native folder holds.

    leaves: name -> shape and dtype. files: name -> hash. shards: Hugging Face file -> its metadata,
    and its tensors with their dtypes; empty if the parameters came from no such files.
    pieces: name -> hash of its file's header.
    """

    model_type: str
    leaves: dict[str, jax.ShapeDtypeStruct]
    files: dict[str, str]
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    pieces: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        leaves = {
            name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name}
            for name, leaf in self.leaves.items()
        }
        head = {"format": FORMAT, "version": VERSION, "qwen_jax": _version()}
        return json.dumps(sealed(head | vars(self) | {"leaves": leaves}), indent=1)

    def seal(self, folder: Path) -> None:
        """Write it, the last of all files, with the hashes of the pieces that are there."""
        pieces = {
            name: hashed_arrays.header_digest(piece_file(folder, name))
            for name in by_piece(self.leaves)
        }
        made = dataclasses.replace(self, pieces=pieces)
        (folder / MANIFEST).write_text(made.to_json(), "utf-8")

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Raises FileNotFoundError or ValueError when the folder is no native checkpoint."""
        _expect_native(folder)
        content = strict_json.read(folder / MANIFEST)
        version = content.get("format"), content.get("version")
        if version != (FORMAT, VERSION):
            raise ValueError(
                f"{folder} is in format {version}, this qwen_jax reads {(FORMAT, VERSION)}; "
                "convert the checkpoint again: python -m convert --hf MODEL --out FOLDER"
            )
        if content != sealed(content):
            raise ValueError(f"{folder / MANIFEST} is damaged: its hash differs; {AGAIN}")
        file = StrictObject(str(folder / MANIFEST), content)
        shards = {}
        for name, shard in file.each("shards"):
            tensors = shard.take(tabled(TEXT), "tensors")
            shards[name] = {"metadata": shard.take(tabled(TEXT), "metadata", default=None)}
            shards[name] |= {"tensors": tensors}
        made = Manifest(
            model_type=file.take(TEXT, "model_type"),
            leaves={name: _leaf(leaf) for name, leaf in file.each("leaves")},
            files=file.take(tabled(TEXT), "files"),
            shards=shards,
            pieces=file.take(tabled(TEXT), "pieces"),
        )
        for name in (*made.files, *shards):
            if name not in pooling_config.FILES and not re.fullmatch(r"\w[\w.-]*", name):
                file.problems.append(f"{shown(name)} is no plain file name")
        file.stop()
        return made

    def problems(self, folder: Path, config: Config) -> list[str]:
        """Everything that keeps the folder from being a whole checkpoint of this network."""
        found = []
        for name, hash in self.files.items():
            if not (folder / name).is_file():
                found.append(f"file {name} is missing")
            elif digest_file(folder / name) != hash:
                found.append(f"file {name} is not what was written: its hash differs")
        try:
            wanted = abstract_leaves(config, formats_of(self.leaves))
        except ValueError as error:
            return [*found, str(error)]
        shapes = {name: leaf.shape for name, leaf in self.leaves.items()}
        found += mismatches({name: leaf.shape for name, leaf in wanted.items()}, shapes)
        found += [
            f"{name} has dtype {leaf.dtype.name}, expected {expected}"
            for name, leaf in self.leaves.items()
            if name in wanted and (expected := _expected(wanted[name].dtype, leaf.dtype))
        ]
        return found + [
            problem for name in by_piece(self.leaves) for problem in self._faults(folder, name)
        ]

    def _faults(self, folder: Path, piece: str) -> list[str]:
        """What is wrong with a piece but for the arrays themselves."""
        try:
            shard = hashed_arrays.examine(piece_file(folder, piece), self.pieces.get(piece, ""))
        except (ValueError, OSError) as error:
            return [f"{WEIGHTS}/{piece}: {error}"]
        stored = {name: int4.packed(leaf) for name, leaf in by_piece(self.leaves)[piece].items()}
        if shard.table() == {name: (leaf.dtype, leaf.shape) for name, leaf in stored.items()}:
            return []
        return [f"{WEIGHTS}/{piece} holds arrays of other names, shapes or dtypes"]


def _version() -> str:
    try:
        return metadata.version("qwen_jax")
    except metadata.PackageNotFoundError:
        return "a checkout that is not installed"


def _expect_native(folder: Path) -> None:
    if (folder / MANIFEST).is_file():
        return
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; make one: python -m convert --hf MODEL --out {folder}"
        )
    if folder.name.endswith(".partial"):
        raise ValueError(f"{folder} was interrupted while it was written; run the conversion again")
    if any(folder.glob("*.safetensors")) or (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is a Hugging Face checkpoint; convert it first: "
            f"python -m convert --hf {folder}"
        )
    raise ValueError(f"{folder} is no checkpoint: it has no {MANIFEST}; give a converted folder")


def _leaf(leaf: StrictObject) -> jax.ShapeDtypeStruct:
    shape = leaf.take(listed(SIZE), "shape")
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(leaf.take(_DTYPE, "dtype")))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's content with the hash of all the rest of it."""
    rest = {name: value for name, value in content.items() if name != "seal"}
    return {**rest, "seal": digest(json.dumps(rest, sort_keys=True).encode())}


def mismatches(wanted: Shapes, got: Shapes) -> list[str]:
    """What differs between two tables of names and shapes."""
    missing = [f"{name} {list(wanted[name])} is missing" for name in wanted if name not in got]
    extra = [f"{name} is unknown to this network" for name in got if name not in wanted]
    return [*missing, *extra] + [
        f"{name} has shape {list(got[name])}, the config asks for {list(shape)}"
        for name, shape in wanted.items()
        if name in got and got[name] != shape
    ]


# --- leaves and pieces ------------------------------------------------------------------------
def _expected(wanted: np.dtype, got: np.dtype) -> str:
    """Empty when a leaf may have the dtype it has."""
    if wanted != jnp.float32:
        return "" if got == wanted else wanted.name
    return "" if got.name in FLOATS else " or ".join(FLOATS)


def by_piece(leaves: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """The leaves of each piece: "embed", "blocks.0", ..., "norm", "head"."""
    pieces: dict[str, dict[str, T]] = {}
    for name, leaf in leaves.items():
        words = name.split(".")
        piece = ".".join(words[:2]) if words[0] == "blocks" else words[0]
        pieces.setdefault(piece, {})[name] = leaf
    return pieces


def size(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """Bytes."""
    return sum(leaf.size * int4.bits(leaf.dtype) // 8 for leaf in leaves.values())


def on_disk(size: int) -> int:
    """Bytes that arrays of `size` bytes take with their files' headers, generously."""
    return size + size // 100 + (64 << 10)


def write_piece(folder: Path, piece: str, arrays: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Arrays of the host or of devices; every process of a run calls this, the first one writes."""
    host = {name: _on_host(int4.pack(array)) for name, array in arrays.items()}
    if jax.process_index():
        return
    path = piece_file(folder, piece)
    path.parent.mkdir(exist_ok=True)
    atomic.check_room(folder, on_disk(sum(array.nbytes for array in host.values())))
    hashed_arrays.write(path, host)


def _on_host(array: np.ndarray | jax.Array) -> np.ndarray:
    """A whole array, wherever its parts are."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def read_piece(
    folder: Path, piece: str, wanted: Mapping[str, jax.ShapeDtypeStruct], header: str
) -> dict[str, Any]:
    """Arrays in the dtypes wanted, on the devices of their shardings; without one, NumPy's.

    header: its hash, from the manifest. Raises ValueError for what was damaged, or OSError.
    """
    file = piece_file(folder, piece)
    how = {name: _reading(int4.packed(leaf)) for name, leaf in wanted.items()}
    parts = [part for name, leaf in how.items() for part in _parts(name, leaf)]
    read = hashed_arrays.read(hashed_arrays.examine(file, header), parts)
    found = dict(zip(parts, read, strict=True))
    arrays: dict[str, Any] = {}
    for name, leaf in wanted.items():  # one at a time: both forms of one array fit
        array = _placed(how[name], {part: found.pop(part) for part in _parts(name, how[name])})
        if leaf.dtype == jnp.int4:
            array = int4.unpack(array)
        if leaf.sharding is not None:
            array = jax.device_put(array, leaf.sharding)
        arrays[name] = array if array.dtype == leaf.dtype else array.astype(leaf.dtype)
    return arrays


def _reading(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """A leaf on devices as it is read: by rows, where other processes can read the others.

    Columns lie scattered over a file; what is cut into them goes round the devices once more.
    """
    spread = leaf.sharding
    if jax.process_count() == 1 or not isinstance(spread, NamedSharding):
        return leaf
    names = [
        name for axis in spread.spec if axis for name in ([axis] if isinstance(axis, str) else axis)
    ]
    if leaf.shape[0] % math.prod(spread.mesh.shape[name] for name in names):
        return leaf
    by_rows = NamedSharding(spread.mesh, P(tuple(names)))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_rows)


def _parts(name: str, leaf: jax.ShapeDtypeStruct) -> list[Rows]:
    """The rows that this process wants: all, or in a run of several those of its devices."""
    if jax.process_count() == 1 or leaf.sharding is None:
        return [Rows(name, 0, leaf.shape[0])]
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    return sorted({Rows(name, *index[0].indices(leaf.shape[0])[:2]) for index in indices})


def _placed(leaf: jax.ShapeDtypeStruct, parts: Mapping[Rows, np.ndarray]) -> Any:
    """An array made of the parts that this process has; on a CPU it is the memory they lie in."""
    if leaf.sharding is None:
        (whole,) = parts.values()
        return whole

    def cut(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(leaf.shape[0])
        (part,) = (part for part in parts if part.start <= start and stop <= part.stop)
        return parts[part][(slice(start - part.start, stop - part.start), *index[1:])]

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, cut)
