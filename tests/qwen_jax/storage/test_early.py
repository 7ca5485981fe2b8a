"""Files that are brought into memory before anybody asks."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qwen_jax.storage import early
from qwen_jax.storage.native_layout import MANIFEST, WEIGHTS, piece_file

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no system to ask")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where it is to begin and how much to read, of each file."""
    found: list[tuple[int, int]] = []
    note: Any = lambda _, start, size, advice: found.append((start, size))
    monkeypatch.setattr(os, "posix_fadvise", note)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / WEIGHTS).mkdir()
    for piece, size in (("embed", 300), ("norm", 20), ("head", 500)):
        piece_file(tmp_path, piece).write_bytes(bytes(size))
    pieces = dict.fromkeys(("embed", "norm", "head"), "")
    (tmp_path / MANIFEST).write_text(json.dumps({"pieces": pieces}))
    return tmp_path


def test_pieces_in_their_order(folder: Path, asked: list[tuple[int, int]]) -> None:
    early.begin(folder).join(30)
    assert asked == [(0, 300), (0, 20), (0, 500)]


@pytest.mark.parametrize(("most", "sizes"), [(310, [300, 10]), (300, [300]), (320, [300, 20])])
def test_no_more_than_stays_in_memory(
    most: int,
    sizes: list[int],
    folder: Path,
    asked: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(early, "_MOST", most)
    early.begin(folder).join(30)
    assert [size for _, size in asked] == sizes


def test_damage_is_left_for_who_reads(folder: Path, asked: list[tuple[int, int]]) -> None:
    piece_file(folder, "norm").unlink()
    early.begin(folder).join(30)
    assert len(asked) == 1
    (folder / MANIFEST).write_text("{")
    early.begin(folder).join(30)
    early.begin(folder / "nowhere").join(30)
    assert len(asked) == 1
