"""One writer at a time: a lock that the system takes back from whoever dies, however he dies.

The file stays behind when its holder is killed, and means nothing: what counts is the lock on it,
which ends with the process, its machine, or a network file system's lease.
"""

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be renamed over or deleted anyway
    fcntl = None  # type: ignore[assignment]

_BUSY = (errno.EAGAIN, errno.EACCES)
_LONGEST = 200  # bytes of a note


@contextlib.contextmanager
def only_writer(path: Path, file: Path | None = None) -> Iterator[None]:
    """Be the only process, and the only thread, that writes `path` in here.

    file: what is locked; default, `<path>.lock`. It is deleted at the end.
    Raises BlockingIOError at once, naming the other, if there is one.
    """
    file = path.with_name(path.name + ".lock") if file is None else file
    made = not file.parent.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    held = _take(path, file)
    try:
        os.ftruncate(held, 0)
        os.write(held, _note()[:_LONGEST])
        yield
    finally:
        file.unlink(missing_ok=True)  # before it is free: nobody can lock it in between
        os.close(held)
        if made:
            with contextlib.suppress(OSError):  # what was written there stays
                file.parent.rmdir()


def _take(path: Path, file: Path) -> int:
    """The descriptor of a lock file that is ours, and that others find under its name."""
    while True:
        held = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _lock(path, held)
            if _is_there(file, held):
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)  # its holder deleted it while we opened it


def _lock(path: Path, held: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            note = " ".join(os.pread(held, _LONGEST, 0).decode(errors="replace").split())
            raise BlockingIOError(
                f"{path} is being written by {note or 'another process'}; wait until that ends, "
                "end it, or choose another folder"
            ) from None
        print(  # some network file systems have no locks; that is no reason to write nothing
            f"warning: {path} cannot be locked ({error.strerror}); let only one process write it",
            file=sys.stderr,
        )


def _is_there(file: Path, held: int) -> bool:
    try:
        return os.path.samestat(file.stat(follow_symlinks=False), os.fstat(held))
    except FileNotFoundError:
        return False


def _note() -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}".encode()
