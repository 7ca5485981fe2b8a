"""Large pieces of memory in pages of 2 MiB, where Linux gives them to those who ask.

A program of XLA's asks for its work space anew at every call. In pages of 4 KiB that is a visit to
the kernel for each, hundreds of thousands in a step of training. The C library asks for large ones
if its environment says so when a process begins.
"""

import os
import sys
from pathlib import Path

_TUNABLES, _ASK = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"  # 1: by madvise; glibc 2.35, 2022
_GIVEN = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask() -> None:
    """Begin this process again with them, unless it has them, or was told something else."""
    if _can_help():
        told = os.environ.get(_TUNABLES)
        os.environ[_TUNABLES] = f"{told}:{_ASK}=1" if told else f"{_ASK}=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _can_help() -> bool:
    if _ASK in os.environ.get(_TUNABLES, "") or sys.platform != "linux" or not sys.executable:
        return False
    try:
        return "[madvise]" in _GIVEN.read_text() and _has_tunable()
    except OSError:
        return False


def _has_tunable() -> bool:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except ValueError:  # another library
        return False
    return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
