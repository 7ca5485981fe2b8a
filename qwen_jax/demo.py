"""The bundled checkpoint, a tiny Qwen v1 with its own vocabulary: python -m qwen_jax.demo."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKPOINT = Path(__file__).parent / "demo_checkpoint"


def native_folder() -> Path:
    """The bundled checkpoint in native format, kept in the user's cache from the first call on.

    A process of its own converts it, so that this one may already be part of a run of several.
    """
    hash = hashlib.sha256()
    for file in sorted(CHECKPOINT.iterdir()):
        hash.update(file.name.encode() + file.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen_jax"
    folder = cache / f"demo-{hash.hexdigest()[:16]}"
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


def main() -> None:
    """Convert the bundled checkpoint, load it, and let it answer twice."""
    import jax

    from qwen_jax.__main__ import show
    from qwen_jax.checkpoint import load
    from qwen_jax.generate import stream_chat

    size = sum(file.stat().st_size for file in CHECKPOINT.iterdir())
    print(f"1. Hugging Face checkpoint: {CHECKPOINT} ({size / 1e6:.1f} MB)")
    began = time.monotonic()
    folder = native_folder()
    print(f"2. converted to {folder} ({time.monotonic() - began:.1f} s)")
    began = time.monotonic()
    params = load(folder)
    leaves = jax.tree.leaves(params)
    count, size = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
    print(
        f"3. loaded {count / 1e6:.2f} M parameters, {size / 1e6:.1f} MB, on {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s) ({time.monotonic() - began:.1f} s)"
    )
    print("4. its answers, which are noise: the bundled weights are random until they are trained")
    for seed, query in enumerate(("qwen_jax 是什么？", "What can I do with qwen_jax?")):
        print(f"\nUser: {query}\nQwen: ", end="", flush=True)
        show(stream_chat(params, query, max_new_tokens=48, seed=seed))


if __name__ == "__main__":
    from qwen_jax.__main__ import run

    run(main)
