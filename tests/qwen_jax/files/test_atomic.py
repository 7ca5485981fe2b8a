"""What has its final name is whole, whatever happens while it is written."""

import errno
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen_jax.files import atomic

FAILURES = [RuntimeError("lightning"), KeyboardInterrupt(), OSError(errno.EDQUOT, "quota")]


def fail(new: AbstractContextManager[Path], error: BaseException) -> None:
    def write() -> None:
        with new as partial:
            (partial / "half" if partial.is_dir() else partial).write_text("ha")
            raise error

    with pytest.raises(type(error)):
        write()


@pytest.mark.parametrize("error", FAILURES)
def test_a_file_is_replaced_or_as_it_was(tmp_path: Path, error: BaseException) -> None:
    atomic.write_text(tmp_path / "x", "old 老")
    fail(atomic.new_file(tmp_path / "x"), error)
    assert (tmp_path / "x").read_text("utf-8") == "old 老"
    atomic.write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("error", FAILURES)
def test_a_folder_is_whole_or_not_there(tmp_path: Path, error: BaseException) -> None:
    fail(atomic.new_folder(tmp_path / "x"), error)
    assert list(tmp_path.iterdir()) == []
    with atomic.new_folder(tmp_path / "x") as partial:
        (partial / "all").write_text("")
        assert not (tmp_path / "x").exists()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["all"]
    with pytest.raises(FileExistsError, match="x exists; choose another folder, or delete it"):
        atomic.new_folder(tmp_path / "x").__enter__()


def test_leftovers_of_a_killed_process_are_not_taken_over(tmp_path: Path) -> None:
    atomic.aside(tmp_path / "x").mkdir()
    (atomic.aside(tmp_path / "x") / "old").write_text("")
    with atomic.new_folder(tmp_path / "x"):
        pass
    assert list((tmp_path / "x").iterdir()) == []


def test_only_an_interruption_is_resumed(tmp_path: Path) -> None:
    for error in FAILURES:
        fail(atomic.new_folder(tmp_path / "x", resume=True), error)
        assert atomic.aside(tmp_path / "x").exists() == isinstance(error, KeyboardInterrupt)


def test_one_of_several_processes_makes_the_folder(tmp_path: Path) -> None:
    met: list[str] = []
    with atomic.new_folder(tmp_path / "x", first=False, meet=met.append) as partial:
        assert not partial.exists()
    assert not (tmp_path / "x").exists()
    assert len(met) == len(set(met)) == 4  # before it is made, filled, renamed, and used


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: write failed [OS error 28: No space left on device]"),
    ],
)
def test_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    message = r"the disk of .*/x is full: 500 kB left, 2 MB needed; make room there, or"
    for new in (atomic.new_file, atomic.new_folder):
        with pytest.raises(OSError, match=message) as caught, new(tmp_path / "x", 2_000_000):
            raise error
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match=message):
        atomic.check_room(tmp_path / "not" / "yet" / "x", 2_000_000)
    atomic.check_room(tmp_path / "x", 500_000)


def test_a_file_that_may_not_be_so_large(tmp_path: Path) -> None:
    message = r"x needs a file of 2 MB in all that is larger than .* allows; see ulimit -f"
    with pytest.raises(OSError, match=message), atomic.new_file(tmp_path / "x", 2_000_000):
        raise OSError(errno.EFBIG, "File too large")


def test_a_disk_that_is_full(small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"report\.json is full: .* left, 2 MB needed"):
        atomic.write_text(small_disk / "report.json", "x" * 2_000_000)
    assert list(small_disk.iterdir()) == []
