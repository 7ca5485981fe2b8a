"""Converting and loading packed weights takes a block's memory and a little, never the model's."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.packed import Packing
from qwen_jax.config import Config
from qwen_jax.storage.hf_names import tensor_views
from qwen_jax.storage.safetensors_file import write, write_header
from tests.convert.test_memory import peak_anonymous

QUANTIZATION = {"quant_method": "gptq", "bits": 4, "group_size": 128}
LOAD = """
import sys, jax, qwen_jax
params = qwen_jax.load(sys.argv[1])
print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


def synthetic(folder: Path, width: int, mlp: int, layers: int, vocab: int) -> int:
    """A Qwen v1 of 4 bits, random ones; returns the bytes of its largest tensor."""
    config = {
        "model_type": "qwen",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 128,
        "intermediate_size": 2 * mlp,
        "seq_length": 2048,
        "quantization_config": QUANTIZATION,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    packing, tensors = Packing("gptq", 4, 128, True), {}
    for part in tensor_views(Config.from_hf(config), "qwen"):
        if part.leaf.startswith("blocks") and part.leaf.endswith("kernel"):
            module = part.tensor.removesuffix(".weight")
            for name, shape in packing.tensors(*part.shape).items():
                kind = np.float16 if name == "scales" else np.int32
                tensors[f"{module}.{name}"] = np.dtype(kind), shape
        else:
            tensors[part.tensor] = np.dtype(np.float16), part.shape
    shard = write_header(folder / "model.safetensors", tensors, None)
    noise = np.random.default_rng(0)
    for name, (dtype, shape) in tensors.items():
        if name.endswith("g_idx"):
            write(shard, name, np.arange(shape[0], dtype=np.int32) // 128)
        elif dtype == np.int32:
            write(shard, name, noise.integers(-(2**31), 2**31, shape, np.int32))
        else:
            write(shard, name, noise.standard_normal(shape, np.float32).astype(np.float16))
    return max(int(np.prod(shape)) * dtype.itemsize for dtype, shape in tensors.values())


def check(folder: Path, limit: float, **sizes: int) -> None:
    largest = synthetic(folder / "hf", **sizes)
    python = [sys.executable, "-m", "convert"]
    native, back = str(folder / "native"), str(folder / "back")
    bound = limit + 2 * largest
    for arguments in (
        ["--hf", str(folder / "hf"), "--out", native, "--verify"],
        ["--to-hf", native, "--out", back],
    ):
        peak, output = peak_anonymous([*python, *arguments])
        print(f"peak {peak / 1e9:.2f} GB of {bound / 1e9:.2f}: {output.strip()}")
        assert peak < bound
    peak, output = peak_anonymous([sys.executable, "-c", LOAD, native])
    print(f"load: peak {peak / 1e9:.2f} GB, of which {int(output) / 1e9:.2f} stay")
    assert peak - int(output) < bound


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(tmp_path: Path) -> None:
    check(tmp_path, 350e6, width=1024, mlp=4096, layers=16, vocab=10_000)


@pytest.mark.big
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_seven_billion(tmp_path: Path) -> None:
    check(tmp_path, 1 << 30, width=4096, mlp=11008, layers=32, vocab=151_936)
