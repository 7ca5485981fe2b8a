"""A piece of a network on a disk: a safetensors file with a hash for every stretch of its arrays.

The hashes are metadata in its header, and the manifest has the header's own. Nothing is used that
was not checked, and who wants a part of an array reads no more than the stretches it lies in.
"""

import ctypes
import io
import itertools
import mmap
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from qwen_jax.files import atomic
from qwen_jax.storage import safetensors_file
from qwen_jax.storage.safetensors_file import Shard, read_shard, write_header

STRETCH = 1 << 20  # bytes of an array that share a hash
_TASK = 4  # stretches that a thread reads at a time
_DIGITS = 32  # of a hash
_LARGE = 1 << 20  # bytes
_LINE = 64  # bytes: what lies at a multiple of these JAX takes on a CPU as it is
_POPULATE = 23  # MADV_POPULATE_WRITE, of Linux 5.14 and later


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
        shard = write_header(partial, tensors, blank)
        hashes = {}
        for name, array in arrays.items():
            safetensors_file.write(shard, name, array)
            (hashes[name],) = _hashes(array)
        write_header(partial, tensors, hashes)
        return _header_digest(shard)


def _hashes(*arrays: np.ndarray) -> list[str]:
    """Of each, one behind the other, those of its stretches."""
    raws = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    parts = [raw[at : at + STRETCH].data for raw in raws for at in range(0, len(raw), STRETCH)]
    with ThreadPoolExecutor(_threads()) as pool:
        found = pool.map(digest, parts)
        return ["".join(itertools.islice(found, _stretches(len(raw)))) for raw in raws]


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
@dataclass(frozen=True)
class _Task:
    """Neighbouring stretches to read and to check."""

    name: str
    offset: int  # in the file
    target: np.ndarray
    hashes: str


def read(shard: Shard, parts: Sequence[Rows]) -> list[np.ndarray]:
    """Parts of arrays, in memory of their own. Raises ValueError for one that is damaged."""
    arrays, tasks = [], list[_Task]()
    for part in parts:
        array, more = _plan(shard, part)
        arrays.append(array)
        tasks += more
    with ThreadPoolExecutor(_threads()) as pool:
        found = pool.map(lambda task: _fetch(shard.path, task), tasks)
        damaged = {task.name for task, good in zip(tasks, found, strict=True) if not good}
    if damaged:
        names = ", ".join(sorted(damaged))
        raise ValueError(
            f"{shard.path} is damaged: {names} is not what was written, its hash differs; "
            "copy the folder again, or convert the checkpoint again"
        )
    return arrays


def bring(shard: Shard) -> dict[str, np.ndarray] | None:
    """All arrays, for `are_whole` to check; None where the file ends too soon.

    In two calls that leave the interpreter to who needs it: one for each stretch would come back
    to it a thousand times, and wait each time.
    """
    memory = _memory(shard.size)
    _populate(memory)
    with shard.path.open("rb", buffering=0) as file:
        file.seek(shard.data)
        return shard.divided(memory) if _filled(file, memory) else None


def are_whole(shard: Shard, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether all of a file's arrays are what was written."""
    hashes = shard.metadata or {}
    return _hashes(*arrays.values()) == [hashes[name] for name in arrays]


def _plan(shard: Shard, part: Rows) -> tuple[np.ndarray, Iterable[_Task]]:
    """Where the rows will be, and the tasks that bring them there."""
    tensor, hashes = shard.tensors[part.name], (shard.metadata or {})[part.name]
    size = tensor.stop - tensor.start
    row = size // tensor.shape[0]
    first, last = part.start * row // STRETCH, _stretches(part.stop * row)
    begin, end = first * STRETCH, min(last * STRETCH, size)
    memory = _memory(end - begin)
    step = _TASK * STRETCH
    tasks = [
        _Task(
            part.name,
            shard.data + tensor.start + at,
            memory[at - begin : at - begin + step],
            hashes[at // STRETCH * _DIGITS :][: _TASK * _DIGITS],
        )
        for at in range(begin, end, step)
    ]
    raw = memory[part.start * row - begin : part.stop * row - begin]
    return raw.view(tensor.dtype).reshape(part.stop - part.start, *tensor.shape[1:]), tasks


def _memory(size: int) -> np.ndarray:
    """Bytes that begin where JAX wants them.

    Large ones in pages of the usual size: NumPy asks for huge ones, which a virtual machine may
    have to get from its host first, at half a gigabyte a second.
    """
    if size > _LARGE and hasattr(mmap, "MAP_PRIVATE"):
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.frombuffer(pages, np.uint8)
    raw = np.empty(size + _LINE, np.uint8)
    return raw[-raw.ctypes.data % _LINE :][:size]


def _fetch(path: Path, task: _Task) -> bool:
    """Whether what was read is what was written; each stretch is hashed while it is in a cache."""
    _populate(task.target)
    with path.open("rb", buffering=0) as file:
        file.seek(task.offset)
        for number, at in enumerate(range(0, len(task.target), STRETCH)):
            part = task.target[at : at + STRETCH]
            if not _filled(file, part):
                return False
            if digest(part.data) != task.hashes[number * _DIGITS :][:_DIGITS]:
                return False
    return True


def _filled(file: io.FileIO, target: np.ndarray) -> bool:
    """Whether the file had so much."""
    part, got = target.data, 0
    while got < len(part):
        more = file.readinto(part[got:])
        if not more:
            return False
        got += more
    return True


def _populate(target: np.ndarray) -> None:
    """Have the system give the memory at once: page by page it costs more than it has to.

    mmap's own madvise would keep the interpreter meanwhile. Where it fails, pages come one by one.
    """
    if _MEMORY is None or len(target) < _LARGE:
        return
    start = -(-target.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (target.ctypes.data + len(target)) // mmap.PAGESIZE * mmap.PAGESIZE
    _MEMORY.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _POPULATE)


_MEMORY = ctypes.CDLL(None) if sys.platform == "linux" else None


def _threads() -> int:
    return max(4, min(16, os.cpu_count() or 1))
