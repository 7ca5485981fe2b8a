"""Pieces of a checkpoint that are read before anybody asks, while a program imports JAX.

Imports take one processor a second; `begin` reads meanwhile on another, in the order in which
`native` will want it. Who takes a piece checks it; what is wrong with it is left for `native` to
say.
"""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qwen_jax.files import strict_json
from qwen_jax.storage import hashed_arrays
from qwen_jax.storage.native_layout import MANIFEST, piece_file
from qwen_jax.storage.safetensors_file import Shard

_MOST = 2 << 30  # bytes that are read and not asked for yet: a device's host may have little memory
Arrays = Mapping[str, np.ndarray]  # a piece's, whole
_Key = tuple[Path, str]  # a file and its header's hash: it holds what was asked for, or nothing


class _Reader:
    """A thread that reads pieces one after another."""

    def __init__(self, folder: Path):
        self._changed = threading.Condition()
        self._read: dict[_Key, tuple[Shard, Arrays]] = {}
        self._now: _Key | None = None
        self._taken: set[_Key] = set()
        self.thread = threading.Thread(target=self._run, args=(folder,), daemon=True)
        self.thread.start()

    def _run(self, folder: Path) -> None:
        try:
            pieces = strict_json.read(folder / MANIFEST)["pieces"]
            for piece, header in pieces.items():
                self._one((piece_file(folder, piece).resolve(), header))
        except Exception:  # whatever a damaged folder may raise: who asks for the piece says it
            pass
        finally:
            with self._changed:
                self._now = None
                self._changed.notify_all()

    def _one(self, key: _Key) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._size() < _MOST)
            if key in self._taken:
                return
            self._now = key
        shard = hashed_arrays.examine(*key)
        arrays = hashed_arrays.bring(shard)
        with self._changed:
            if arrays is not None:
                self._read[key] = shard, arrays
            self._now = None
            self._changed.notify_all()

    def _size(self) -> int:
        return sum(shard.size for shard, _ in self._read.values())

    def take(self, key: _Key) -> Arrays | None:
        with self._changed:
            self._taken.add(key)
            self._changed.wait_for(lambda: self._now != key)
            self._changed.notify_all()
            found = self._read.pop(key, None)
        return found[1] if found and hashed_arrays.are_whole(*found) else None


_reader: _Reader | None = None


def begin(folder: Path) -> None:
    """Read this folder's pieces from now on."""
    global _reader
    _reader = _Reader(folder)


def take(file: Path, header: str) -> Arrays | None:
    """All arrays of a piece with such a header, once; None: they were not read, or are damaged."""
    return None if _reader is None else _reader.take((file.resolve(), header))
