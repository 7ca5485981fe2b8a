"""Headers are checked before they are believed."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from qwen_jax.storage.safetensors_file import (
    LONGEST_HEADER,
    parse_header,
    read_shard,
    write,
    write_header,
)

GOOD = {
    "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "a": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def changed(**entry: Any) -> bytes:
    return json.dumps(GOOD | {"b": GOOD["b"] | entry}).encode()


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.ones(5, ml_dtypes.bfloat16),
        "z": np.arange(4, dtype=np.int32),
    }
    (tmp_path / "s").write_bytes(save(arrays, metadata={"format": "pt"}))
    shard = read_shard(tmp_path / "s")
    assert shard.metadata == {"format": "pt"}
    assert shard.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert shard.read(name).dtype == array.dtype
        np.testing.assert_array_equal(shard.read(name), array)
        np.testing.assert_array_equal(shard.read_all()[name], array)


def test_many_tensors_take_no_descriptors(tmp_path: Path) -> None:
    """Else a file of a few megabytes leaves none for a server's connections."""
    (tmp_path / "s").write_bytes(save({str(n): np.zeros(n % 2) for n in range(50)}))
    before = len([*Path("/dev/fd").iterdir()])
    held = read_shard(tmp_path / "s").read_all()
    assert len(held) == 50
    assert len([*Path("/dev/fd").iterdir()]) <= before + 1


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    """As views its tensors would end the process."""
    path, ones = tmp_path / "s", np.ones(1 << 16, np.float32)
    path.write_bytes(save({"x": ones}))
    shard = read_shard(path)
    held = shard.read_all()["x"]
    os.truncate(path, 5000)
    np.testing.assert_array_equal(held, ones)
    with pytest.raises(ValueError, match="s is cut off"):
        shard.read_all()


def test_safetensors_reads_what_we_wrote(tmp_path: Path) -> None:
    arrays = {"ü": np.arange(6, dtype=np.float16), "b": np.ones((2, 2), ml_dtypes.bfloat16)}
    wanted = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    shard = write_header(tmp_path / "s", wanted, {"format": "pt"})
    for name in reversed(arrays):
        write(shard, name, arrays[name])
    for name, array in load_file(tmp_path / "s").items():
        np.testing.assert_array_equal(array, arrays[name])
    assert read_shard(tmp_path / "s") == shard


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut off in the header"),
        (b"1234567", "cut off in the header"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ((2**63).to_bytes(8, "little") + b"{}", "cut off in the header"),
        (file_of(b"[]"), r"is \[\], expected an object"),
        (file_of(b"{"), "not JSON"),
        (file_of(b"\xff\xff"), "not JSON"),
        (file_of(b"[" * 100_000), "nested too deep"),
        (file_of(b'{"a": 1}'), "a is 1, expected an object"),
        (file_of(b'{"__metadata__": {"a": 1}}'), "metadata"),
        (file_of(b'{"a":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,2]}}'), "dtype"),
        (file_of(json.dumps(GOOD).encode(), b"\0" * 31), "cut off; download it again"),
        (file_of(json.dumps(GOOD).encode(), b"\0" * 33), "unknown data"),
        (file_of(changed(dtype="F7")), "b.dtype is 'F7', expected"),
        (file_of(changed(dtype=["F32"])), "dtype"),
        (file_of(changed(shape=[2, 4])), "expected 32 bytes for its shape"),
        (file_of(changed(shape=[-2, -3])), "shape"),
        (file_of(changed(shape=[True, 6])), "shape"),
        (file_of(changed(shape=[2**62] * 8)), "bytes for its shape"),
        (file_of(changed(data_offsets=[8, 32])), "expected it at"),
        (file_of(changed(data_offsets=[0])), "offsets"),
        (file_of(changed(extra=1)), r"unknown keys \['extra'\] in b"),
    ],
)
def test_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_shard(tmp_path / "model.safetensors")


def test_duplicate_tensor(tmp_path: Path) -> None:
    entry = json.dumps(GOOD["b"])
    (tmp_path / "s").write_bytes(file_of(f'{{"b":{entry},"b":{entry}}}'.encode(), b"\0" * 24))
    assert load_file(tmp_path / "s").keys() == {"b"}  # the library takes one of the two
    with pytest.raises(ValueError, match="'b' twice"):
        read_shard(tmp_path / "s")


def test_header_bomb_is_not_read(tmp_path: Path) -> None:
    """A file that is as long as its header says, all holes."""
    with (tmp_path / "s").open("wb") as file:
        file.write((1 << 34).to_bytes(8, "little"))
        file.truncate((1 << 34) + 8)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"more than {LONGEST_HEADER}"):
        read_shard(tmp_path / "s")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@given(st.binary(max_size=300), st.integers(0, 2**40))
def test_random_bytes(raw: bytes, size: int) -> None:
    try:
        tensors, _ = parse_header(raw, size)
    except ValueError:
        return
    assert sum(t.stop - t.start for t in tensors.values()) == size


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(st.data())
def test_mutations(data: Any) -> None:
    """Any part of a sound header replaced by anything is refused, or still describes 32 bytes."""
    header = json.loads(json.dumps(GOOD))
    name = data.draw(st.sampled_from(["a", "b", "c", "__metadata__"]))
    field = data.draw(st.sampled_from([None, "dtype", "shape", "data_offsets"]))
    if field and name in header:
        header[name][field] = data.draw(json_values)
    else:
        header[name] = data.draw(json_values)
    raw = bytearray(json.dumps(header).encode())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
        raw[place] = data.draw(st.integers(0, 255))
    try:
        tensors, _ = parse_header(bytes(raw), 32)
    except ValueError:
        return
    assert sum(tensor.stop - tensor.start for tensor in tensors.values()) == 32
