"""Pieces that are read before anybody asks: the same arrays, once, and never what is not meant."""

import json
from pathlib import Path

import numpy as np
import pytest

from qwen_jax.storage import early, hashed_arrays
from qwen_jax.storage.native_layout import MANIFEST, WEIGHTS, piece_file

PIECES = {
    name: {"kernel": np.full((3, 5), n, np.float32)} for n, name in enumerate(("embed", "head"))
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(early, "_reader", None)
    (tmp_path / WEIGHTS).mkdir()
    headers = {
        name: hashed_arrays.write(piece_file(tmp_path, name), arrays)
        for name, arrays in PIECES.items()
    }
    (tmp_path / MANIFEST).write_text(json.dumps({"pieces": headers}))
    return tmp_path


def header(folder: Path, piece: str) -> str:
    return hashed_arrays.header_digest(piece_file(folder, piece))


def take(folder: Path, piece: str) -> early.Arrays | None:
    return early.take(piece_file(folder, piece), header(folder, piece))


def wait(folder: Path) -> None:
    """Until all is read: the reader has nothing behind the last piece."""
    assert early._reader is not None
    early._reader.thread.join(30)


def test_pieces_are_what_was_written_and_are_given_once(folder: Path) -> None:
    assert take(folder, "embed") is None  # nobody has begun
    early.begin(folder)
    wait(folder)
    for piece, arrays in PIECES.items():
        found = take(folder, piece)
        assert found is not None
        np.testing.assert_array_equal(found["kernel"], arrays["kernel"], strict=True)
        assert take(folder, piece) is None


def test_what_was_replaced_is_not_given(folder: Path) -> None:
    """A file is known by its header, which has the hashes of all that it holds."""
    early.begin(folder)
    wait(folder)
    file = piece_file(folder, "head")
    file.unlink()
    hashed_arrays.write(file, {"kernel": np.full((3, 5), 7, np.float32)})
    assert take(folder, "head") is None
    assert take(folder, "embed") is not None


def test_damage_is_left_for_who_asks(folder: Path) -> None:
    file = piece_file(folder, "embed")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    early.begin(folder)
    assert take(folder, "embed") is None
    early.begin(folder / "nowhere")
    wait(folder)
    assert take(folder, "head") is None


def test_no_more_is_held_than_may_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits until the first is taken."""
    monkeypatch.setattr(early, "_MOST", 1)
    early.begin(folder)
    assert early._reader is not None
    early._reader.thread.join(0.5)
    assert early._reader.thread.is_alive()
    assert take(folder, "embed") is not None
    wait(folder)
    assert take(folder, "head") is not None
