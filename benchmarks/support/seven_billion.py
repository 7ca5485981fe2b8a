"""A checkpoint of 7 billion random weights, and how long it takes to read, to answer and to serve.

The weights are dropped from the file cache before every measurement: a computer's memory does not
hold them twice. Reading is what no start can go below: the same files by four threads into memory
of their own, as a network lies in.
"""

import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.support.server import ROOT, started
from qwen_jax.config import Config
from qwen_jax.storage import native, native_layout
from qwen_jax.storage.hashed_arrays import digest_file
from qwen_jax.storage.native import Manifest

CONFIG: dict[str, Any] = {  # of Qwen2.5-7B
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
THREADS, CHUNK = 4, 4 << 20


def write(out: Path, tokenizer: Path) -> Path:
    """A native checkpoint in bfloat16 with the tokenizer of a converted Qwen2. Returns `out`."""
    from qwen_jax.nn.model import build
    from qwen_jax.nn.tree import named_leaves

    out.mkdir()
    files = {}
    for name in Manifest.read(tokenizer).files:
        if name.startswith(("tokenizer", "vocabulary", "generation_config")):
            shutil.copyfile(tokenizer / name, out / name)
            files[name] = digest_file(out / name)
    (out / "config.json").write_text(json.dumps(CONFIG))
    files["config.json"] = digest_file(out / "config.json")
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)
    some = noise.astype(ml_dtypes.bfloat16)

    def leaf(shape: tuple[int, ...], axes: object, kind: str) -> Any:
        whole = {"ones": 1, "zeros": 0}.get(kind)
        made = some if whole is None else np.full(1, whole, ml_dtypes.bfloat16)
        return lambda: np.resize(made, shape)

    import jax
    import jax.numpy as jnp

    config = Config.from_hf(CONFIG)
    shapes = build(config, lambda shape, *_: jax.ShapeDtypeStruct(shape, jnp.bfloat16))
    leaves = named_leaves(shapes)
    makers = named_leaves(build(config, leaf))
    for piece, names in native.by_piece(leaves).items():
        native.write_piece(out, piece, {name: makers[name]() for name in names})
    Manifest("qwen2", leaves, files).seal(out)
    return out


def drop(folder: Path) -> None:
    """Have the system forget what it keeps of the weights."""
    for file in (folder / native_layout.WEIGHTS).iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(folder: Path) -> float:
    """Seconds of a plain read of the weights."""

    def one(file: Path) -> mmap.mmap:
        memory = mmap.mmap(-1, file.stat().st_size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        at = 0
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(memoryview(memory)[at : at + CHUNK]):
                at += count
        return memory

    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        held = list(pool.map(one, (folder / native_layout.WEIGHTS).iterdir()))
    seconds = time.monotonic() - began
    held.clear()
    return seconds


def answer(folder: Path) -> float:
    """Seconds from the command to the first letter of its answer."""
    options = ["--max-new-tokens", "2", "--temperature", "0"]
    command = [sys.executable, "-m", "qwen_jax", str(folder), "hi", *options]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.monotonic() - began
        process.stdout.read()  # or the rest of the answer has nowhere to go
    if process.returncode or not first:
        raise RuntimeError(f"the command ended with {process.returncode}")
    return seconds


def serve(folder: Path) -> float:
    """Seconds from the command to a server that takes requests."""
    began = time.monotonic()
    with started("--model", str(folder), "--cache-memory", "1GiB"):
        return time.monotonic() - began


KINDS = {"plain read": read, "first token": answer, "server ready": serve}


def measured(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each kind, in turns; programs are kept before the first that counts."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(repeats + 1):
        for kind, seconds in KINDS.items():
            drop(folder)
            print(f"start {number} of {repeats}: {kind}", file=sys.stderr, flush=True)
            spent = round(seconds(folder), 2)
            if number:
                found[kind].append(spent)
    return found
