"""A checkpoint's files are brought into memory while a program imports JAX.

Imports take a processor a second, and a disk nothing. What is wrong with a file is left for
`native` to find, which maps it.
"""

import os
import threading
from pathlib import Path

from qwen_jax.files import strict_json
from qwen_jax.storage.native_layout import MANIFEST, piece_file

_MOST = 2 << 30  # bytes: what comes much earlier than it is used may be gone by then


def begin(folder: Path) -> threading.Thread:
    """Have the system read this folder's pieces from now on, in the order they are wanted in."""
    thread = threading.Thread(target=_bring, args=(folder,), daemon=True)
    thread.start()
    return thread


def _bring(folder: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    left = _MOST
    try:
        for piece in strict_json.read(folder / MANIFEST)["pieces"]:
            with piece_file(folder, piece).open("rb", buffering=0) as file:
                size = min(left, os.fstat(file.fileno()).st_size)
                os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_WILLNEED)
            left -= size
            if not left:  # to which advice 0 would be all of a file
                return
    except Exception:  # whatever a damaged folder may raise: who reads the piece says it
        pass
