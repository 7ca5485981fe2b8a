"""One safetensors file: a header that is checked before it is believed, and views of the data.

Format: 8 bytes, the header's length; the header, JSON; the tensors' bytes without gaps.
https://huggingface.co/docs/safetensors
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qwen_jax.files.strict_json import (
    TEXT,
    Kind,
    StrictObject,
    choice,
    decode,
    listed,
    tabled,
    whole,
)

LONGEST_HEADER = 4 << 20  # bytes; that of Qwen-72B takes a tenth of a megabyte
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # first byte, counted from the end of the header

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A safetensors file; tensors in the order of their bytes, `data` where those begin."""

    path: Path
    data: int
    tensors: dict[str, Tensor]
    metadata: dict[str, str] | None

    def table(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        return {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """A view of the file: its pages are the system's to drop, none of it is our memory."""
        tensor = self.tensors[name]
        size = tensor.stop - tensor.start
        raw = np.memmap(self.path, np.uint8, "r", offset=self.data + tensor.start, shape=(size,))
        return np.asarray(raw).view(tensor.dtype).reshape(tensor.shape)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return max((tensor.stop for tensor in self.tensors.values()), default=0)

    def view_all(self) -> dict[str, np.ndarray]:
        """Views of all tensors; the file is opened once, however many it has.

        What is written to them does not reach it. Raises ValueError where it is cut off by now.
        """
        return self._divided(np.asarray(np.memmap(self.path, np.uint8, "c"))[self.data :])

    def read_all(self) -> dict[str, np.ndarray]:
        """All tensors, in our memory; raises ValueError where the file is cut off meanwhile.

        A view would end the process that reads it then.
        """
        with self.path.open("rb") as file:
            file.seek(self.data)
            return self._divided(np.fromfile(file, np.uint8, self.size))

    def _divided(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        if len(raw) < self.size:
            raise ValueError(f"{self.path.name} is cut off, by somebody who writes to it just now")
        return {
            name: raw[tensor.start : tensor.stop].view(tensor.dtype).reshape(tensor.shape)
            for name, tensor in self.tensors.items()
        }


def read_shard(path: Path) -> Shard:
    """Check the header and that it accounts for every byte of the file. Raises ValueError."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            first = file.read(8)
            if first == b"version ":
                raise ValueError("is a pointer to the file, not the file; run: git lfs pull")
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > size - 8:
                raise ValueError(f"is cut off in the header, at {size} bytes; download it again")
            if length > LONGEST_HEADER:
                raise ValueError(f"has a header of {length} bytes, more than {LONGEST_HEADER}")
            tensors, metadata = parse_header(file.read(length), size - 8 - length)
    except ValueError as error:
        raise ValueError(f"{path.name} {error}") from None
    return Shard(path, 8 + length, tensors, metadata)


def parse_header(raw: bytes, size: int) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """The tensors and the metadata of a header that describes `size` bytes. Raises ValueError."""
    try:
        header = decode(raw)
    except ValueError as error:
        raise ValueError(f"has a header that is {error}") from None
    file = StrictObject("its header", header)
    metadata = file.take(tabled(TEXT), "__metadata__", default=None)
    tensors = {name: _tensor(file, name) for name in list(file.left)}
    if file.problems:
        raise ValueError(f"has a header with faults: {'; '.join(file.problems[:3])}")
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 0
    for name, tensor in tensors.items():
        if tensor.start != end:
            raise ValueError(f"has tensor {name} at byte {tensor.start}, expected it at {end}")
        end = tensor.stop
    if end != size:
        state = "it is cut off; download it again" if end > size else "the rest is unknown data"
        raise ValueError(f"has {size} bytes of data, its header describes {end}: {state}")
    return tensors, metadata


def _tensor(file: StrictObject, name: str) -> Tensor:
    """One entry of the header; its offsets must agree with its shape and dtype."""
    entry = file.inside(name)
    dtype = DTYPES[entry.take(_DTYPE, "dtype")]
    shape, offsets = entry.take(_SHAPE, "shape"), entry.take(_OFFSETS, "data_offsets")
    entry.leave()
    tensor = Tensor(dtype, tuple(shape), offsets[0])
    if tensor.stop != offsets[1]:
        entry.wrong("data_offsets", offsets, f"{tensor.stop - tensor.start} bytes for its shape")
    return tensor


# the bounds keep a product of sizes from growing without end
_PLACE = whole(0, 2**63 - 1)
_DTYPE = choice(*DTYPES)
_SHAPE = Kind[list[int]]("up to 8 sizes", lambda x: listed(_PLACE).holds(x) and len(x) <= 8, [])
_OFFSETS = Kind[list[int]](
    "where it begins and ends", lambda x: listed(_PLACE).holds(x) and len(x) == 2, [0, 0]
)


def write_header(
    path: Path,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    metadata: Any,
    aligned: int = 8,
) -> Shard:
    """Start a file with room for these tensors in this order; `write` fills it.

    aligned: bytes, of which the tensors begin at a multiple. In a file that has room for them
    already, what they hold stays.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    entries, start = {}, 0
    for name, (dtype, shape) in tensors.items():
        tensor = entries[name] = Tensor(dtype, shape, start)
        offsets = [start, tensor.stop]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        start = tensor.stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % aligned)
    path.touch()
    with path.open("r+b") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    return Shard(path, 8 + len(text), entries, metadata)


def write(shard: Shard, name: str, array: np.ndarray) -> None:
    with shard.path.open("r+b") as file:
        file.seek(shard.data + shard.tensors[name].start)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
