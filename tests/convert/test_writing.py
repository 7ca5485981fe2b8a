"""What is written is whole, or is not there."""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import convert
from convert.source import PATTERNS
from qwen_jax.checkpoint import load
from qwen_jax.storage import native
from qwen_jax.storage.origin import Origin
from tests.conftest import Golden
from tests.convert.conftest import Copy
from tests.convert.small import assert_holds


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Writes `pieces` pieces, then fails; returns the names of those written."""
    original = native.write_piece

    def arrange(pieces: int, error: Any) -> list[Any]:
        written: list[Any] = []

        def write(folder: Path, piece: str, arrays: dict[str, np.ndarray]) -> None:
            if len(written) == pieces:
                raise error
            written.append(piece)
            original(folder, piece, arrays)

        monkeypatch.setattr(native, "write_piece", write)
        return written

    return arrange


def test_out_exists(golden: Golden, tmp_path: Path) -> None:
    source = golden("v1/bf16")
    (tmp_path / "out").mkdir()
    for write in (convert.to_native, convert.to_hf):
        with pytest.raises(FileExistsError, match="out exists; choose another folder"):
            write(source, tmp_path / "out")
    with pytest.raises(FileExistsError):
        convert.to_native(source, tmp_path / "out", verify=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_interrupted_conversion_goes_on(
    golden: Golden,
    tmp_path: Path,
    interrupted: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = golden("v1/base")
    first = interrupted(3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert.to_native(source, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["out.partial"]
    with pytest.raises(ValueError, match="was interrupted while it was written"):
        load(tmp_path / "out.partial")
    # what a killed process leaves behind
    (tmp_path / "out.partial/weights/head.safetensors.partial").write_bytes(b"half")

    second = interrupted(99, None)
    convert.to_native(source, tmp_path / "out", verify=True)
    assert len(first) == 3
    assert not set(first) & set(second)
    assert "3 of 5 pieces found done" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    pieces = sorted(file.stem for file in (tmp_path / "out/weights").iterdir())
    assert pieces == sorted(first + second)
    assert_holds(load(tmp_path / "out"), source)


@pytest.mark.parametrize("change", ["dtype", "source", "rubbish"])
def test_partial_of_another_conversion_is_replaced(
    checkpoint: Copy, tmp_path: Path, interrupted: Callable[..., Any], change: str
) -> None:
    source = checkpoint("v1/base")
    interrupted(3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert.to_native(source, tmp_path / "out")
    if change == "source":
        os.utime(source / "model-00001-of-00003.safetensors", (1, 1))
    if change == "rubbish":
        (tmp_path / "out.partial/conversion.json").write_text("{")
    written = interrupted(99, None)
    convert.to_native(source, tmp_path / "out", dtype="float16" if change == "dtype" else None)
    assert len(written) == 5


def test_errors_leave_nothing(
    golden: Golden, tmp_path: Path, interrupted: Callable[..., Any]
) -> None:
    interrupted(3, RuntimeError("lightning"))
    with pytest.raises(RuntimeError, match="lightning"):
        convert.to_native(golden("v1/base"), tmp_path / "out")
    interrupted(3, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match=r"out is full: .* left, 739 kB needed; make room"):
        convert.to_native(golden("v1/base"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_verify_is_not_kept(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.native.is_same", lambda leaf, tensor: False)
    with pytest.raises(ValueError, match=r"embed differs from transformer\.wte\.weight"):
        convert.to_native(golden("v1/base"), tmp_path / "out", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_room_is_checked_first(
    golden: Golden,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: Callable[..., Any],
) -> None:
    written = interrupted(0, AssertionError())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    with pytest.raises(OSError, match=r"out is full: 500 kB left, 739 kB needed; make room"):
        convert.to_native(golden("v1/base"), tmp_path / "out")
    assert not written
    assert list(tmp_path.iterdir()) == []


def test_room_is_checked_on_the_way_back(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert.to_native(golden("v1/bf16"), tmp_path / "native")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(OSError, match=r"back is full: 100 kB left"):
        convert.to_hf(folder, tmp_path / "back")
    assert list(tmp_path.iterdir()) == [folder]


def test_place_that_cannot_be_written(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = convert.to_native(golden("v1/bf16"), tmp_path / "native")
    for write, source in ((convert.to_native, golden("v1/bf16")), (convert.to_hf, made)):
        with pytest.raises(OSError, match="file"):
            write(source, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == ""


# --- hubs -------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_hub(golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Only weights in safetensors, configs and tokenizers are asked for: no pickle and no code."""
    calls = []

    def snapshot_download(model: str, allow_patterns: list[str], **of: str) -> str:
        calls.append((model, allow_patterns, of))
        return str(golden("v1/bf16"))

    package = {"huggingface": "huggingface_hub", "modelscope": "modelscope"}[source]
    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, package, fake)
    monkeypatch.chdir(tmp_path)
    assert str(convert.to_native("Qwen/Qwen-Tiny", source=source)) == "qwen-tiny"
    assert calls == [("Qwen/Qwen-Tiny", PATTERNS, {})]
    convert.to_native("Qwen/Qwen-Tiny", "gptq", source, revision="gptq-4bit-32g-actorder_True")
    assert calls[1:] == [("Qwen/Qwen-Tiny", PATTERNS, {"revision": "gptq-4bit-32g-actorder_True"})]
    local = Origin(str(golden("v1/bf16")))  # another hub's ids mean nothing to PEFT
    hub = [Origin("Qwen/Qwen-Tiny"), Origin("Qwen/Qwen-Tiny", "gptq-4bit-32g-actorder_True")]
    found = [Origin.read(tmp_path / name) for name in ("qwen-tiny", "gptq")]
    assert found == (hub if source == "huggingface" else [local, local])
    with pytest.raises(ValueError, match="is a folder here; a revision is of a model on the hub"):
        convert.to_native(golden("v1/bf16"), "other", revision="main")
    wanted = ["model*.safetensors", "model.safetensors.index.json", "config.json"]
    assert {*wanted, "generation_config.json", "qwen.tiktoken", "tokenizer.json"} <= set(PATTERNS)
    assert not [
        p
        for p in PATTERNS
        if not p.endswith((".safetensors", ".json", ".txt", ".jinja", ".tiktoken"))
    ]
    assert_holds(load("qwen-tiny"), golden("v1/bf16"))


def test_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def snapshot_download(model: str, allow_patterns: list[str]) -> None:
        raise RuntimeError("401 Client Error")

    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    with pytest.raises(OSError, match="cannot download Qwen/Nothing from huggingface: 401"):
        convert.to_native("Qwen/Nothing", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    wanted = r'modelscope, which is not installed; pip install "qwen_jax\[modelscope\]"'
    with pytest.raises(ValueError, match=wanted):
        convert.to_native("Qwen/Nothing", tmp_path / "out", source="modelscope")
    with pytest.raises(ValueError, match="source is 'moon'"):
        convert.to_native("Qwen/Nothing", tmp_path / "out", source="moon")
