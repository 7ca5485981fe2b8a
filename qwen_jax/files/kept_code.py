"""Code that was made here, in a folder of the user's, for the next start.

Code is run, so a file is used only where it and its folder belong to the user of this process and
nobody else may write to them. What is damaged is made again; past LIMIT bytes of a folder those
files go that were not used for longest.
"""

import contextlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

LIMIT = 4 << 30  # bytes of all files of a folder


def digest(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


@contextlib.contextmanager
def told(log: logging.Logger, what: str) -> Iterator[None]:
    """A cache that fails costs time, never the answer."""
    try:
        yield
    except Exception as error:  # whatever unpickling or a backend may raise
        log.warning("%s: %s", what, " ".join(str(error).split())[:300])


def read(file: Path, circumstances: str) -> tuple[bytes, Any] | None:
    """What was kept, and what was noted; None where there is nothing. ValueError over no trust."""
    if not file.exists():
        return None
    with file.open("rb") as stream:
        _expect_own(os.fstat(stream.fileno()), file)
        _expect_own(file.parent.stat(), file.parent)
        head, _, content = stream.read().partition(b"\n")
    told = json.loads(head)
    if told["circumstances"] != circumstances or told["hash"] != digest(content):
        raise ValueError("it is damaged")
    os.utime(file)  # it is used: others go first
    return content, told["note"]


def write(file: Path, circumstances: str, content: bytes, note: Any = None) -> None:
    """Keep it. circumstances: all that it depends on, of which the file's name has a hash."""
    told = {"circumstances": circumstances, "hash": digest(content), "note": note}
    head = json.dumps(told).encode() + b"\n"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _expect_own(file.parent.stat(), file.parent)
    _trim(file.parent, LIMIT - len(head) - len(content))
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as stream:  # mode 0600
        try:
            stream.write(head + content)
            stream.close()
            Path(stream.name).replace(file)
        except BaseException:
            Path(stream.name).unlink(missing_ok=True)
            raise


def _expect_own(found: os.stat_result, path: Path) -> None:
    ours = hasattr(os, "geteuid") and found.st_uid == os.geteuid()
    if not ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"{path} belongs to somebody else, or others may write to it")


def _trim(place: Path, limit: int) -> None:
    """Delete what was not used for longest until the rest takes no more than `limit` bytes."""
    found: list[tuple[os.stat_result, Path]] = []
    for file in place.iterdir():
        with contextlib.suppress(FileNotFoundError):  # what somebody writes is renamed meanwhile
            found.append((file.stat(), file))
    for status, file in sorted(found, key=lambda pair: -pair[0].st_mtime):
        limit -= status.st_size
        if limit < 0:
            file.unlink(missing_ok=True)
