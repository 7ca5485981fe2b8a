"""Run a program that a model wrote, so that what it does hurts nobody.

A child of its own, which inherits no environment and no open file, works in a folder that is
thrown away, within limits on time, memory, files, threads and processes. On Linux the kernel
keeps the rest from it: Landlock every write outside its folder, and every file that is not the
system's, Python's or given to it; seccomp every other process, socket, signal and change of the
system. Elsewhere only the limits hold, and `missing` says so.

This is for the mistakes of a model and plain malice. It trusts the kernel and the machine: code
of an adversary wants a virtual machine.
"""

import contextlib
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MEMORY = 2 << 30  # bytes of address space
OUTPUT = 1 << 20  # bytes of each file, and of what is printed
FOLDER = 16 << 20  # bytes of all files
_START = 20.0  # seconds that a busy machine may take to start the child
_LOOK = 0.02  # seconds between two looks at the child
_BLOCK = 4096  # bytes that a file takes at least
_DEEPEST = 32  # folders in one another
_THREADS = 256
_OURS = ("program.py", "printed", "passed", "unkept")  # in the child's folder
_GUARD = Path(__file__).with_name("program_guard.py")


def missing() -> str:
    """Which walls this system does not give; empty where it gives all."""
    passed, printed, unkept = _run("", 5)
    return unkept if passed else f"all: no program comes to its end: {printed[-200:].strip()}"


def passes(program: str, seconds: float, files: Path | None = None) -> bool:
    """Whether a program comes to its end without an error in so many seconds; files as for run."""
    return run(program, seconds, files)[0]


def run(
    program: str,
    seconds: float,
    files: Path | None = None,
    unwanted: threading.Event | None = None,
) -> tuple[bool, str]:
    """(whether it came to its end without an error, what it printed, at most OUTPUT bytes).

    files: a folder whose files lie beside the program, to be read. unwanted: ends it, once set.
    """
    passed, printed, _ = _run(program, seconds, files, unwanted)
    return passed, printed


def _run(
    program: str,
    seconds: float,
    files: Path | None = None,
    unwanted: threading.Event | None = None,
) -> tuple[bool, str, str]:
    with tempfile.TemporaryDirectory(prefix="qwen-jax-code-", ignore_cleanup_errors=True) as root:
        folder, word = Path(root), secrets.token_hex()
        for file in files.iterdir() if files else ():
            if file.name not in _OURS:
                (folder / file.name).symlink_to(file.resolve())
        (folder / "program.py").write_text(program, "utf-8", errors="replace")
        with (folder / "printed").open("wb") as printed:
            reads = [str(files.resolve())] if files else []
            limits = (MEMORY, OUTPUT, int(seconds) + 1)
            child = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_GUARD), *map(str, limits), *reads],
                cwd=folder,
                env={"HOME": root, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                with contextlib.suppress(BrokenPipeError), child.stdin or printed as pipe:
                    pipe.write(word.encode())
                _wait(child, folder, seconds, unwanted or threading.Event())
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                with contextlib.suppress(OSError):
                    _flatten(folder)
        passed = _read(folder / "passed") == word
        return passed, _read(folder / "printed"), _read(folder / "unkept")


def _wait(
    child: subprocess.Popen[bytes], folder: Path, seconds: float, unwanted: threading.Event
) -> None:
    """Until it ends, nobody wants it, its time is over, its folder too large, its threads many."""
    started, begun = time.monotonic(), None
    while child.poll() is None and not unwanted.wait(_LOOK):
        now = time.monotonic()
        if begun is None and (folder / "passed").exists():  # its Python is there
            begun = now
        if now - started > _START + seconds or (begun and now - begun > seconds):
            return
        if _size(folder) > FOLDER or _threads(child.pid) > _THREADS:
            return


def _size(folder: Path) -> float:
    """Bytes of all that lies in a folder, in which somebody is at work; inf: it is hidden."""
    size, folders, slashes = 0, [str(folder)], str(folder).count("/")
    while folders and size <= FOLDER:
        inner = folders.pop()
        try:
            with os.scandir(inner) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        size += max(_BLOCK, entry.stat(follow_symlinks=False).st_size)
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                    if size > FOLDER:
                        break
        except FileNotFoundError:
            continue
        except OSError:
            return math.inf
        if inner.count("/") - slashes > _DEEPEST:
            return math.inf
    return size


def _threads(process: int) -> int:
    try:
        return len(list(Path(f"/proc/{process}/task").iterdir()))
    except OSError:
        return 0


def _flatten(folder: Path) -> None:
    """Every folder in it opened and lifted into it, so that it can be removed at any depth."""
    folders = [folder]
    while folders:
        for entry in list(folders.pop().iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                entry.chmod(0o700)
                folders.append(entry.rename(folder / secrets.token_hex(16)))


def _read(path: Path) -> str:
    try:
        # not where a link of the program's leads, and not waiting at its pipe
        how = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(path, how), "rb") as file:
            return file.read(OUTPUT).decode("utf-8", "replace")
    except OSError:
        return ""
