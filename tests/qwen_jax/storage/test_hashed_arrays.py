"""Arrays with hashes: whole ones, parts that cost no more than they must, and damage."""

from pathlib import Path

import numpy as np
import pytest

from qwen_jax.storage import hashed_arrays
from qwen_jax.storage.hashed_arrays import Rows

ARRAY = np.arange(256 * 40, dtype=np.float32).reshape(256, 40)  # 160 bytes a row
OTHERS: dict[str, np.ndarray] = {
    "scale": np.ones(3, np.int8),
    "table": np.arange(7, dtype=np.int32).reshape(7, 1),
}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A file whose stretches are so short that the arrays have many, and its header's hash."""
    monkeypatch.setattr(hashed_arrays, "STRETCH", 1000)
    file = tmp_path / "x.safetensors"
    return file, hashed_arrays.write(file, OTHERS | {"kernel": ARRAY})


def test_what_was_written_is_read(written: tuple[Path, str]) -> None:
    shard = hashed_arrays.examine(*written)
    parts = [(0, 256), (0, 1), (255, 256), (6, 7), (13, 101), (50, 150)]
    rows = [Rows("kernel", start, stop) for start, stop in parts]
    more = [Rows(name, 0, len(array)) for name, array in OTHERS.items()]
    *found, scale, table = hashed_arrays.read(shard, rows + more)
    for (start, stop), part in zip(parts, found, strict=True):
        np.testing.assert_array_equal(part, ARRAY[start:stop], strict=True)
    np.testing.assert_array_equal(scale, OTHERS["scale"], strict=True)
    np.testing.assert_array_equal(table, OTHERS["table"], strict=True)


def test_a_part_needs_no_more_than_its_stretches(written: tuple[Path, str]) -> None:
    """What else is damaged is neither read nor missed."""
    file, header = written
    shard = hashed_arrays.examine(file, header)
    at = shard.data + shard.tensors["kernel"].start + 20_500  # in row 128
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)
    shard = hashed_arrays.examine(file, header)
    for start, stop in ((0, 125), (132, 256)):
        (part,) = hashed_arrays.read(shard, [Rows("kernel", start, stop)])
        np.testing.assert_array_equal(part, ARRAY[start:stop])
    for start, stop in ((0, 256), (128, 129), (126, 127)):  # the last shares the stretch
        with pytest.raises(ValueError, match="damaged: kernel is not what was written"):
            hashed_arrays.read(shard, [Rows("kernel", start, stop)])


def test_a_header_is_what_it_was(written: tuple[Path, str]) -> None:
    file, _ = written
    other = hashed_arrays.write(file.with_name("y.safetensors"), {"kernel": ARRAY + 1})
    with pytest.raises(ValueError, match="another header than was written"):
        hashed_arrays.examine(file, other)


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(array: np.ndarray) -> str:
        raise OSError("lightning")

    monkeypatch.setattr(hashed_arrays, "_hashes", fail)
    with pytest.raises(OSError, match="lightning"):
        hashed_arrays.write(tmp_path / "x.safetensors", OTHERS)
    assert list(tmp_path.iterdir()) == []


def test_a_view_is_the_readers_own(written: tuple[Path, str]) -> None:
    file, header = written
    shard, before = hashed_arrays.examine(file, header), file.read_bytes()
    (part,) = hashed_arrays.read(shard, [Rows("kernel", 3, 5)])
    part[:] = 7
    assert file.read_bytes() == before
    file.write_bytes(before[:-1])
    with pytest.raises(ValueError, match="is cut off, by somebody who writes to it just now"):
        hashed_arrays.read(shard, [Rows("kernel", 3, 5)])
