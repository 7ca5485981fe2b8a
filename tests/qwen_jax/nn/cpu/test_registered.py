"""Machine code is made once, and run only where nobody else could have written it."""

import itertools
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.nn.cpu import registered
from qwen_jax.nn.cpu.kinds import Kind
from qwen_jax.nn.cpu.weights import Processor
from tests.qwen_jax.nn.cpu.test_products import numbers

KIND = Kind("float32", "float32")
_names = itertools.count()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(registered.FOLDER, str(tmp_path / "code"))
    return tmp_path / "code"


def made(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Register it under a new name and multiply with it; whether LLVM had to make it."""
    make, seen = registered._compiled, list[Any]()

    def watched(*how: Any) -> bytes:
        seen.append(how)
        return make(*how)

    name = f"{KIND.name}_again_{next(_names)}"
    with monkeypatch.context() as patch:
        patch.setattr(registered, "_compiled", watched)
        registered.register(KIND, name)
    x, weights = jnp.asarray(numbers(0, 3, 64)), jnp.asarray(numbers(1, 8, 64))
    like = jax.ShapeDtypeStruct((3, 8), jnp.float32)
    y = jax.ffi.ffi_call(name, like)(x, jnp.int32(0), weights)
    np.testing.assert_allclose(y, np.asarray(x) @ np.asarray(weights).T, atol=1e-5)
    return bool(seen)


def test_is_made_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(monkeypatch)
    assert not made(monkeypatch)
    (file,) = place.iterdir()
    assert (place.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    monkeypatch.delenv(registered.FOLDER)
    assert made(monkeypatch)


@pytest.mark.parametrize("key", ["code", "features", "processor"])
def test_what_it_depends_on(place: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    assert made(monkeypatch)
    if key == "code":
        monkeypatch.setattr(registered, "_code", lambda: "other")
    elif key == "features":
        found = registered._features()
        monkeypatch.setattr(registered, "_features", lambda: found + ",+sse2")
    else:
        lesser = Processor(4, 16, pairs=False, tables=False, tiles=False)
        monkeypatch.setattr(registered, "processor", lambda: lesser)
    assert made(monkeypatch)
    assert len([*place.iterdir()]) == 2


@pytest.mark.parametrize("trouble", ["folder", "file", "owner", "flipped", "cut", "empty"])
def test_what_cannot_be_trusted_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    assert made(monkeypatch)
    (file,) = place.iterdir()
    content = bytearray(file.read_bytes())
    if trouble == "folder":
        place.chmod(0o777)
    elif trouble == "file":
        file.chmod(0o620)
    elif trouble == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    elif trouble == "flipped":
        content[-100] ^= 1
    else:
        del content[-1 if trouble == "cut" else 0 :]
    if trouble in ("flipped", "cut", "empty"):
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert made(monkeypatch)
    assert "is made again" in caplog.text


def test_a_folder_that_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_text("a file")
    assert made(monkeypatch)
