"""A piece of a network on a disk: a safetensors file with a hash for every stretch of its arrays.

The hashes are metadata in its header, and the manifest has the header's own. Nothing is used that
was not checked, and who wants a part of an array reads no more than the stretches it lies in.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import xxhash

from qwen_jax.files import atomic
from qwen_jax.storage import safetensors_file
from qwen_jax.storage.safetensors_file import Shard, read_shard, write_header

STRETCH = 1 << 20  # bytes of an array that share a hash
_DIGITS = 32  # of a hash
_LINE = 64  # bytes: what lies at a multiple of these JAX takes on a CPU as it is


def digest(content: bytes | memoryview) -> str:
    """XXH3 of 128 bits: 28 GB/s of a core that reads 8, where sha256 has 2."""
    return xxhash.xxh3_128_hexdigest(content)


def digest_file(path: Path) -> str:
    """Of a file of any length."""
    made = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            made.update(part)
    return made.hexdigest()


@dataclass(frozen=True, order=True)
class Rows:
    """A part of an array: its rows from start to stop."""

    name: str
    start: int
    stop: int


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Arrays to a file that is whole or not there; returns its header's hash."""
    tensors = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    blank = {name: "0" * _DIGITS * _stretches(array.nbytes) for name, array in arrays.items()}
    with atomic.new_file(path, sum(array.nbytes for array in arrays.values())) as partial:
        shard = write_header(partial, tensors, blank, _LINE)
        hashes = {}
        for name, array in arrays.items():
            safetensors_file.write(shard, name, array)
            hashes[name] = _hashes(array)
        write_header(partial, tensors, hashes, _LINE)
        return _header_digest(shard)


def _hashes(array: np.ndarray) -> str:
    return "".join(_digests(_cut(np.ascontiguousarray(array))))


def _cut(array: np.ndarray) -> list[memoryview]:
    """Its stretches."""
    raw = array.reshape(-1).view(np.uint8)
    return [raw[at : at + STRETCH].data for at in range(0, len(raw), STRETCH)]


def _digests(stretches: Sequence[memoryview]) -> list[str]:
    """Of each; a thread takes a run of them, for the fewer threads wait for the interpreter."""
    run = max(1, -(-len(stretches) // _threads()))
    runs = [stretches[at : at + run] for at in range(0, len(stretches), run)]
    with ThreadPoolExecutor(_threads()) as pool:
        return [*itertools.chain(*pool.map(lambda run: [*map(digest, run)], runs))]


def _stretches(size: int) -> int:
    return -(-size // STRETCH)


def header_digest(path: Path) -> str:
    return _header_digest(read_shard(path))


def _header_digest(shard: Shard) -> str:
    with shard.path.open("rb") as file:
        return digest(file.read(shard.data))


def examine(path: Path, header: str) -> Shard:
    """A file with nothing but its arrays left to check. Raises ValueError, or OSError.

    header: the hash of its header.
    """
    shard = read_shard(path)
    if _header_digest(shard) != header:
        raise ValueError(f"{path.name} has another header than was written: its hash differs")
    hashes = {name: len(text) for name, text in (shard.metadata or {}).items()}
    sizes = {name: tensor.stop - tensor.start for name, tensor in shard.tensors.items()}
    if hashes != {name: _DIGITS * _stretches(size) for name, size in sizes.items()}:
        raise ValueError(f"{path.name} has not a hash for every part of its arrays")
    return shard


# --- reading ----------------------------------------------------------------------------------
def read(shard: Shard, parts: Sequence[Rows]) -> list[np.ndarray]:
    """Parts of arrays, as views of the file. Raises ValueError for one that is damaged.

    Nothing is copied, and processes that read one file share the memory it lies in. What is written
    to a view stays with it; who cuts the file off meanwhile ends the process.
    """
    arrays, hashes = shard.view_all(), shard.metadata or {}
    found, stretches, wanted = list[np.ndarray](), list[memoryview](), list[tuple[str, str]]()
    for name, start, stop in map(astuple, parts):
        array = arrays[name]
        row = array.nbytes // len(array)
        first, last = start * row // STRETCH, _stretches(stop * row)
        stretches += _cut(array)[first:last]
        wanted += [(name, hashes[name][n * _DIGITS :][:_DIGITS]) for n in range(first, last)]
        found.append(array[start:stop])
    digests = _digests(stretches)
    damaged = {name for (name, hash), got in zip(wanted, digests, strict=True) if got != hash}
    if damaged:
        names = ", ".join(sorted(damaged))
        raise ValueError(
            f"{shard.path} is damaged: {names} is not what was written, its hash differs; "
            "copy the folder again, or convert the checkpoint again"
        )
    return found


def _threads() -> int:
    return max(4, min(16, os.cpu_count() or 1))
