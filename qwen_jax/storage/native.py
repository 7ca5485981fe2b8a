"""The native format on disk: a folder whose arrays go straight to the shards of any mesh.

    manifest.json          what is here: every leaf's shape and dtype, every other file's hash, and
                           the Hugging Face shards that the leaves came from
    config.json, ...       Hugging Face's files as they came: generation defaults, tokenizer
    weights/blocks.0, ...  orbax, one small checkpoint for each piece of the network

A piece is a block, the embedding, the last norm or the head: what a converter holds at a time, and
what an interrupted conversion need not write again.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from qwen_jax.config import Config
from qwen_jax.files import atomic, strict_json
from qwen_jax.nn.quant import abstract_leaves, formats_of
from qwen_jax.nn.tree import FLOATS, INTEGERS
from qwen_jax.storage import int4

FORMAT, VERSION = "qwen_jax", 1
MANIFEST, WEIGHTS = "manifest.json", "weights"
CHUNK = 16 << 20  # bytes: devices that want a part of an array read little else, in few requests
T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Manifest:
    """What a native folder holds.

    leaves: name -> shape and dtype. files: name -> sha256. shards: Hugging Face file -> its
    metadata, and its tensors with their dtypes; empty if the parameters came from no such files.
    pieces: name -> bytes on the disk.
    """

    model_type: str
    leaves: dict[str, jax.ShapeDtypeStruct]
    files: dict[str, str]
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    pieces: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        leaves = {
            name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name}
            for name, leaf in self.leaves.items()
        }
        head = {"format": FORMAT, "version": VERSION, "qwen_jax": _version()}
        return json.dumps(head | vars(self) | {"leaves": leaves}, indent=1)

    def seal(self, folder: Path) -> None:
        """Write it, the last of all files, with the sizes of the pieces that are there."""
        pieces = {piece: _bytes(folder / WEIGHTS / piece) for piece in by_piece(self.leaves)}
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
                "convert the checkpoint again"
            )
        try:
            leaves = {name: _leaf(**leaf) for name, leaf in content["leaves"].items()}
            files, shards = content["files"], content["shards"]
            if bad := [name for name in (*files, *shards) if not re.fullmatch(r"\w[\w.-]*", name)]:
                raise ValueError(f"{bad} are no plain file names")
            tables = [
                table
                for shard in shards.values()
                for table in (shard["tensors"], shard["metadata"] or {})
            ]
            if not all(isinstance(text, str) for table in tables for text in table.values()):
                raise ValueError("a shard has no tables of tensors and metadata")
            return Manifest(content["model_type"], leaves, files, shards, dict(content["pieces"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{folder / MANIFEST} is damaged: {error!r}") from None

    def problems(self, folder: Path, config: Config) -> list[str]:
        """Everything that keeps the folder from being a whole checkpoint of this network."""
        found = []
        for name, hash in self.files.items():
            if not (folder / name).is_file():
                found.append(f"file {name} is missing")
            elif sha256(folder / name) != hash:
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
        for piece in by_piece(self.leaves):
            held, written = _bytes(folder / WEIGHTS / piece), self.pieces.get(piece)
            if held != written:
                found.append(f"{WEIGHTS}/{piece} holds {held} bytes, {written} were written")
        return found


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
    raise ValueError(f"{folder} is no checkpoint: it has no {MANIFEST}")


def _leaf(shape: list[int], dtype: str) -> jax.ShapeDtypeStruct:
    if dtype not in (*FLOATS, *INTEGERS) or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"a leaf has shape {shape} and dtype {dtype}")
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Bytes that arrays of `size` bytes take with orbax's own files, generously."""
    return size + size // 100 + (64 << 10)


def write_piece(folder: Path, piece: str, arrays: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Arrays of the host or of devices; every process of a run calls this.

    A full disk may raise OSError or, where tensorstore finds it, ValueError: see atomic.explain.
    """
    packed = {name: int4.pack(array) for name, array in arrays.items()}
    how = {name: ocp.SaveArgs(chunk_byte_size=CHUNK) for name in packed}
    need = on_disk(sum(array.nbytes for array in packed.values()))
    atomic.check_room(folder, need)  # found before orbax's threads run into it
    target = (folder / WEIGHTS / piece).absolute()
    _orbax().save(target, args=ocp.args.PyTreeSave(packed, save_args=how))


def read_piece(
    folder: Path, piece: str, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """Arrays in the dtypes wanted, on the devices of their shardings; without one, NumPy's."""
    stored = {name: int4.packed(leaf) for name, leaf in wanted.items()}
    path = folder / WEIGHTS / piece
    with readable(path):
        arrays = _orbax().restore(path.absolute(), args=restore_args(stored))
    for name, leaf in wanted.items():  # one at a time: both forms of one array fit
        if leaf.dtype == jnp.int4:
            arrays[name] = int4.unpack(arrays[name])
    return arrays


def restore_args(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> ocp.args.PyTreeRestore:
    """Arrays as orbax should restore them: to their shardings; without one, NumPy's."""

    def how(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
        )

    return ocp.args.PyTreeRestore(
        item=leaves, restore_args={name: how(leaf) for name, leaf in leaves.items()}
    )


@contextlib.contextmanager
def readable(path: Path, advice: str = "") -> Iterator[None]:
    """ValueError for whatever orbax raises: it wraps what its parts do in plain Exceptions."""
    try:
        yield
    except Exception as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0][:300]
        raise ValueError(f"{path} cannot be read: {reason}{advice}") from error


def _orbax() -> ocp.Checkpointer:
    """Uncompressed: random-looking bits gain a fifth, and reading would be three times slower."""
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
    )
