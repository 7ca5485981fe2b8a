"""The bundled checkpoint, a tiny Qwen v1 with its own vocabulary: what "demo" names."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from qwen_jax.files import user_cache

CHECKPOINT = Path(__file__).parent / "demo_checkpoint"


def cached() -> Path:
    """Where the converted one is, or will be."""
    from qwen_jax.storage.native import VERSION  # late: it imports JAX

    hash = hashlib.sha256(str(VERSION).encode())  # of the format it is converted to
    for file in sorted(CHECKPOINT.iterdir()):
        hash.update(file.name.encode() + file.read_bytes())
    return user_cache.folder() / f"demo-{hash.hexdigest()[:16]}"


def native_folder() -> Path:
    """The bundled checkpoint in native format, kept in the user's cache from the first call on.

    A process of its own converts it, so that this one may already be part of a run of several.
    """
    folder = cached()
    cache = folder.parent
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as aside:
        made = Path(aside) / "demo"
        command = [sys.executable, "-m", "convert", "--hf", str(CHECKPOINT), "--out", str(made)]
        root = Path(__file__).parents[1]  # where `convert` is, installed or not
        run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if run.returncode:
            raise OSError(f"the demo checkpoint cannot be converted: {run.stderr.strip()}")
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder
