"""Loading, saving and converting a checkpoint, beside plain files and safetensors.

    python -m benchmarks.load [--gigabytes 1.2] [--folder /tmp] [--repeats 5]

Writes benchmarks/results/load.json: GB/s, the median and the best of the repeats, file cache warm,
and GB for each second of a core's work, which depends less on the machine's other users. A round
runs every contestant once, so that what else the machine does meets all of them.
"""

import contextlib
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import tyro
from safetensors import safe_open
from safetensors.numpy import save_file

import convert
from benchmarks.support import record
from qwen_jax.checkpoint import load, save
from qwen_jax.config import Config
from qwen_jax.storage.hf_names import tensor_views
from qwen_jax.storage.safetensors_file import write_header


def make(folder: Path, gigabytes: float) -> int:
    """A bfloat16 Qwen v1 of random bits with blocks of Qwen-1.8B; returns its bytes."""
    config = {
        "model_type": "qwen",
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": max(1, round((gigabytes * 1e9 - 1.245e9) / 101.2e6)),
        "intermediate_size": 11008,
        "seq_length": 2048,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {part.tensor: part.shape for part in tensor_views(Config.from_hf(config), "qwen")}
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    tensors = {name: (bfloat16, shape) for name, shape in shapes.items()}
    shard = write_header(folder / "model.safetensors", tensors, {"format": "pt"})
    size = shard.path.stat().st_size - shard.data
    noise = np.random.default_rng(0).integers(0, 0x7F00, 32 << 20, np.uint16).tobytes()
    with shard.path.open("r+b") as file:
        file.seek(shard.data)
        for start in range(0, size, len(noise)):
            file.write(noise[: size - start])
    return size


def contestants(root: Path) -> dict[str, Callable[[], object]]:
    """What is timed; those that write do so to `out`, which is removed after each."""
    file, out = root / "hf" / "model.safetensors", root / "out"
    buffer = bytearray(16 << 20)

    def read() -> None:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    def safetensors_to_device() -> object:
        with safe_open(file, framework="np") as stream:
            return [jax.device_put(stream.get_tensor(name)) for name in stream.keys()]  # noqa: SIM118

    arrays = safetensors_numpy(file)
    params = load(root / "native")
    out_file = root / "out.safetensors"
    return {
        "plain read, one buffer": read,
        "plain read, new memory": lambda: np.fromfile(file, np.uint8),
        "safetensors to device": safetensors_to_device,
        "qwen_jax.load": lambda: load(root / "native"),
        "plain copy": lambda: shutil.copyfile(file, out),
        "safetensors save": lambda: save_file(arrays, out_file),
        "qwen_jax.save": lambda: save(params, out),
        "convert.to_native": lambda: convert.to_native(root / "hf", out),
        "convert.to_native, verify only": lambda: convert.to_native(
            root / "hf", root / "native", verify=True
        ),
        "convert.to_hf": lambda: convert.to_hf(root / "native", out),
    }


def safetensors_numpy(file: Path) -> dict[str, np.ndarray]:
    with safe_open(file, framework="np") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118


def measure(gigabytes: float = 1.3, folder: Path | None = None, repeats: int = 5) -> None:
    """Time every contestant.

    Args:
        gigabytes: Size of the checkpoint; its embedding and head alone are 1.2.
        folder: Where to write, on the disk to be measured; default, the system's for such files.
        repeats: Rounds.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name, contextlib.redirect_stdout(io.StringIO()):
        root = Path(name)
        size = make(root / "hf", gigabytes)
        convert.to_native(root / "hf", root / "native")
        seconds: dict[str, list[float]] = {}
        work: dict[str, list[float]] = {}
        for _ in range(repeats):
            for label, run in contestants(root).items():
                start, busy = time.perf_counter(), time.process_time()
                jax.block_until_ready(run())
                seconds.setdefault(label, []).append(time.perf_counter() - start)
                work.setdefault(label, []).append(time.process_time() - busy)
                for path in root.glob("out*"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    speeds = {
        label: {
            "median": round(size / 1e9 / statistics.median(times), 2),
            "best": round(size / 1e9 / min(times), 2),
            "per_core_second": round(size / 1e9 / statistics.median(work[label]), 2),
        }
        for label, times in seconds.items()
    }
    packages = ("jax", "flax", "orbax-checkpoint", "tensorstore", "safetensors", "numpy")
    result = {
        "unit": "GB/s",
        "checkpoint_gigabytes": round(size / 1e9, 2),
        "repeats": repeats,
        "machine": record.machine()
        | {
            "load_average": record.load_average(),
            "devices": [str(device) for device in jax.devices()],
        },
        "versions": record.versions(*packages),
        "speeds": speeds,
    }
    record.write("load", result)
    for label, speed in speeds.items():
        print(
            f"{label:32} {speed['median']:6.2f} GB/s   best {speed['best']:.2f}   "
            f"{speed['per_core_second']:.2f} GB per core second"
        )


if __name__ == "__main__":
    tyro.cli(measure)
