"""Files and folders that are whole or not there: written aside, renamed at the end.

A full disk is told in one way everywhere: which, what is left there, what is needed, what to do.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from qwen_jax.files.lock import only_writer
from qwen_jax.files.sizes import size

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TOLD = ("No space left", "quota exceeded")  # by libraries that raise errors of their own


def aside(path: Path) -> Path:
    """Where the folder that will be `path` is written."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def new_file(path: Path, need: int | None = None) -> Iterator[Path]:
    """Where to write a file that takes the place of `path`. need: bytes, if that is known.

    Of several processes that write it the last one's stays, whole.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        explain(error, path, need)
        raise


def copy_file(source: Path, target: Path) -> None:
    """To a folder that is written, or one in it."""
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)


def write_text(path: Path, text: str) -> None:
    content = text.encode()
    with new_file(path, len(content)) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def new_folder(
    path: Path,
    need: int | None = None,
    resume: bool = False,
    first: bool = True,
    meet: Callable[[str], object] = lambda what: None,
    locked: bool = False,
) -> Iterator[Path]:
    """Where to write a folder that does not exist yet. need: bytes, if that is known.

    resume: keep what an earlier call wrote that was interrupted, and when interrupted leave it.
    locked: the caller is its `lock.only_writer`; otherwise it is locked here.
    In a run of several processes all enter; first: whether this one makes the folder and renames
    it. meet: returns in all of them when all have called it with the same words.
    """
    expect_free(path)
    meet(f"{path} is free")
    partial = aside(path)
    with only_writer(path) if first and not locked else contextlib.nullcontext():
        try:
            if first:
                expect_free(path)  # whoever was its writer before may have written it
                if not resume:
                    shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True, exist_ok=True)
            meet(f"{path} is begun")
            yield partial
            meet(f"{path} is written")
            if first:
                partial.rename(path)
            meet(f"{path} is whole")
        except BaseException as error:
            if first and (isinstance(error, Exception) or not resume):
                shutil.rmtree(partial, ignore_errors=True)
            explain(error, path, need)
            raise


def expect_free(path: Path) -> None:
    """Raise FileExistsError rather than write over what is there."""
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another folder, or delete it first")


def check_room(path: Path, need: int) -> None:
    """Raise OSError if the disk has no room for `need` bytes at `path`."""
    if need > _left(path):
        raise _full(path, need)


def explain(error: BaseException, path: Path, need: int | None = None, advice: str = "") -> None:
    """Raise OSError that says what is missing, if `error` is about a full disk at `path`."""
    told = f"{error} {error.__cause__}"
    if getattr(error, "errno", None) in _FULL or any(words in told for words in _TOLD):
        raise _full(path, need, advice) from error
    if getattr(error, "errno", None) == errno.EFBIG or "File too large" in told:
        needed = "" if need is None else f" of {size(need)} in all"
        raise OSError(
            f"{path} needs a file{needed} that is larger than this shell or file system allows; "
            "see ulimit -f, or choose another disk"
        ) from error


def _full(path: Path, need: int | None, advice: str = "") -> OSError:
    needed = "" if need is None else f", {size(need)} needed"
    advice = advice or "make room there, or choose another disk"
    left = size(_left(path))
    error = OSError(f"the disk of {path} is full: {left} left{needed}; {advice}")
    error.errno = errno.ENOSPC
    return error


def _left(path: Path) -> int:
    """Bytes on the disk where a path is or will be."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
