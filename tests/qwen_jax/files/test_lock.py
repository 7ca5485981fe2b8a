"""One process writes; the others are told at once who, and nobody waits for the dead."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import convert
import train
from qwen_jax.adapters import peft
from qwen_jax.adapters.peft_config import LoraConfig
from qwen_jax.bundled import native_folder
from qwen_jax.files import atomic, lock
from tests.train.runs import small

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from qwen_jax.files.lock import only_writer
path, file = map(Path, sys.argv[1:])
with only_writer(path, file):
    print("held", flush=True)
    sys.stdin.read()
"""
Hold = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """hold(path) -> another process that writes it until its input ends."""
    others = []

    def start(path: Path, file: Path | None = None) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", HOLD, str(path), str(file or f"{path}.lock")]
        pipe = subprocess.PIPE
        other = subprocess.Popen(line, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        others.append(other)
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        return other

    yield start
    for other in others:
        other.kill()
        other.communicate()


def test_the_second_is_refused_and_told_who_is_first(tmp_path: Path, hold: Hold) -> None:
    other = hold(tmp_path / "x")
    message = (
        rf"x is being written by process {other.pid} on \S+ since 20[-0-9]+ [:0-9]+; "
        "wait until that ends, end it, or choose another folder"
    )
    with pytest.raises(BlockingIOError, match=message), lock.only_writer(tmp_path / "x"):
        pass
    other.communicate()
    with lock.only_writer(tmp_path / "x"):
        assert str(os.getpid()) in (tmp_path / "x.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_the_dead_block_nobody(tmp_path: Path, hold: Hold) -> None:
    other = hold(tmp_path / "x")
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert (tmp_path / "x.lock").exists()
    with lock.only_writer(tmp_path / "x"):
        pass


def test_a_lock_that_was_deleted_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder ends between our opening the file and our locking it."""
    file, plain = tmp_path / "x.lock", lock._lock
    file.touch()

    def late(path: Path, held: int) -> None:
        monkeypatch.setattr(lock, "_lock", plain)
        file.unlink()
        plain(path, held)

    monkeypatch.setattr(lock, "_lock", late)
    with lock.only_writer(tmp_path / "x"):
        message = re.escape(f"is being written by process {os.getpid()} on")
        with pytest.raises(BlockingIOError, match=message), lock.only_writer(tmp_path / "x"):
            pass


@pytest.mark.parametrize("what", ["to_native", "to_hf", "adapter", "train"])
def test_whatever_writes_a_folder_writes_it_alone(tmp_path: Path, hold: Hold, what: str) -> None:
    """What the other has written stays; refused before any work."""
    out = tmp_path / "out"
    hold(out, out / "run.lock" if what == "train" else None)
    (theirs := atomic.aside(out)).mkdir()
    (theirs / "half").touch()
    adapter = peft.Adapter(LoraConfig(1, 1, ()), {}, {})
    write: dict[str, Callable[[], object]] = {
        "to_native": lambda: convert.to_native("demo", out),
        "to_hf": lambda: convert.to_hf(native_folder(), out),
        "adapter": lambda: peft.write(adapter, out),
        "train": lambda: train.fine_tune(small(tmp_path)),
    }
    with pytest.raises(BlockingIOError, match="out is being written by process"):
        write[what]()
    assert (theirs / "half").exists()


def test_what_the_first_has_made_is_not_made_again(tmp_path: Path) -> None:
    """It ended between our first look and the lock."""
    look = lambda words: (tmp_path / "x").mkdir() if words.endswith("is free") else None
    with pytest.raises(FileExistsError), atomic.new_folder(tmp_path / "x", meet=look):
        pass
