"""A conversion's own memory does not grow with the checkpoint."""

import json
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from qwen_jax.config import Config
from qwen_jax.storage.hf_names import tensor_views
from qwen_jax.storage.safetensors_file import write_header

LIMIT_S = 900
ROOT = Path(__file__).parents[2]


def synthetic(folder: Path, width: int, mlp: int, layers: int, vocab: int) -> int:
    """A bfloat16 Qwen v1 of random bits, a shard for each 2 GB; returns its largest tensor."""
    config = {
        "model_type": "qwen",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 128,
        "intermediate_size": 2 * mlp,
        "seq_length": 2048,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {part.tensor: part.shape for part in tensor_views(Config.from_hf(config), "qwen")}
    sizes = {name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}
    ends = np.cumsum([*sizes.values()])
    index = {
        name: f"model-{int(end // 2e9):05}.safetensors"
        for name, end in zip(shapes, ends, strict=True)
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    noise = np.random.default_rng(0).bytes(64 << 20)
    for file in set(index.values()):
        own = {n: (np.dtype(ml_dtypes.bfloat16), s) for n, s in shapes.items() if index[n] == file}
        shard = write_header(folder / file, own, None)
        left = sum(sizes[name] for name in own)
        with shard.path.open("r+b") as stream:
            stream.seek(shard.data)
            while left > 0:
                left -= stream.write(noise[: min(left, len(noise) - 4096 - left % 4096)])
    return max(sizes.values())


def peak_anonymous(command: list[str]) -> tuple[int, str]:
    """Run it; the most memory that was its own, not pages of files."""
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        peak, start = 0, time.monotonic()
        while process.poll() is None and time.monotonic() - start < LIMIT_S:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            found = [int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")]
            peak = max(peak, *found, 0)
            time.sleep(0.01)
        process.kill()
        assert process.returncode == 0
        output, _ = process.communicate()
        return peak, output


def check(folder: Path, limit: float, **sizes: int) -> None:
    """Convert, verify, and convert back, each within the limit + 2 x the largest tensor."""
    largest = synthetic(folder / "hf", **sizes)
    python = [sys.executable, "-m", "convert"]
    native, back = str(folder / "native"), str(folder / "back")
    for arguments in (
        ["--hf", str(folder / "hf"), "--out", native, "--verify"],
        ["--to-hf", native, "--out", back],
    ):
        peak, output = peak_anonymous([*python, *arguments])
        print(f"peak {peak / 1e9:.2f} GB of {(limit + 2 * largest) / 1e9:.2f}: {output.strip()}")
        assert peak < limit + 2 * largest


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(tmp_path: Path) -> None:
    check(tmp_path, 320e6, width=1024, mlp=4096, layers=16, vocab=10_000)


@pytest.mark.big
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_six_gigabytes(tmp_path: Path) -> None:
    check(tmp_path, 1 << 30, width=4096, mlp=11008, layers=9, vocab=151_936)
