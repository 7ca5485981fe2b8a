"""Ceilings of the device, and whether it computes what it should."""

import contextlib
import functools
import io
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import convert
import qwen_jax
from benchmarks.accelerator.kept import Case, SkippedError
from benchmarks.accelerator.sizes import Size
from benchmarks.accelerator.weights import seconds
from benchmarks.support import record
from qwen_jax.nn import backends
from qwen_jax.nn.kv_cache import Store, store_and_attend
from tests.qwen_jax.nn.kernels import cases

GOLDEN = Path(__file__).parents[2] / "tests/golden"
GOLDENS = ("v1/base", "modern/qwen2_gqa", "modern/qwen3")
TOLERANCE = 3e-2  # of bfloat16 logits, as a share of the largest
KERNEL_TOLERANCE = 2e-2
CALLS: dict[str, dict[str, Any]] = {  # of a kernel
    "bfloat16, one token": {"cache": "bfloat16"},
    "bfloat16, groups of 7, 4 tokens": {"cache": "bfloat16", "groups": 7, "length": 4},
    "int8 cache, one token": {"cache": "int8"},
    "int8 cache, groups of 4": {"cache": "int8", "groups": 4, "norms": True},
}


def ceilings(size: Size) -> dict[str, Case]:
    def read() -> dict[str, Any]:
        total, best = jax.jit(jnp.max), math.inf  # one number of all that is read
        for dtype in (jnp.bfloat16, jnp.float32):
            x = jnp.ones(size.read // dtype.dtype.itemsize, dtype)
            best = min(best, *seconds(functools.partial(total, x), 10 * size.repeats))
        return {"bytes": size.read, "gigabytes_a_second": round(size.read / best / 1e9, 1)}

    def product(dtype: str) -> dict[str, Any]:
        n, times = size.product, 8
        noise = jax.random.normal(jax.random.key(0), (n, n))  # equal bits would take less power
        x = (noise * (32 if dtype == "int8" else n**-0.5)).astype(dtype)
        wide = jnp.int32 if dtype == "int8" else jnp.float32

        def several(x: jax.Array) -> jax.Array:  # one after another: calls cost nothing
            multiply = lambda _, y: jnp.dot(x, y, preferred_element_type=wide).astype(dtype)
            return jax.lax.fori_loop(0, times, multiply, x)

        run = jax.jit(several)
        best = min(seconds(lambda: run(x), 5 * size.repeats))
        return {"rows": n, "teraflops_a_second": round(2 * n**3 * times / best / 1e12, 1)}

    def device() -> dict[str, Any]:
        (first, *_), packages = jax.devices(), ("jax", "jaxlib", "flax", "jax-cuda13-plugin")
        stats = first.memory_stats() or {}
        return {
            "kind": first.device_kind,
            "platform": first.platform,
            "devices": jax.device_count(),
            "memory_bytes": stats.get("bytes_limit"),
            "machine": record.machine(),
            "versions": record.versions(*packages, "libtpu", "nvidia-cudnn-cu13", "torch"),
        }

    dtypes = ("bfloat16", "int8")
    products = {f"product {dtype}": functools.partial(product, dtype) for dtype in dtypes}
    return {"device": device, "read": read} | products


def goldens(size: Size) -> dict[str, Case]:
    """The original implementations' logits, by bfloat16 weights and products."""

    def compare(name: str) -> dict[str, Any]:
        wanted = load_file(GOLDEN / name / "golden.safetensors")
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(io.StringIO()):
                convert.to_native(GOLDEN / name, Path(folder) / "native")
            params = qwen_jax.load(Path(folder) / "native", dtype="bfloat16")
            got = np.asarray(qwen_jax.logits(params, wanted["input_ids"]), np.float64)
        logits = wanted["logits"]
        got = got[..., : logits.shape[-1]]
        far = float(np.abs(got - logits).max() / np.abs(logits).max())
        return {"difference": round(far, 5), "allowed": TOLERANCE, "good": far <= TOLERANCE}

    return {name: functools.partial(compare, name) for name in GOLDENS}


def kernels(size: Size) -> dict[str, Case]:
    """Every kernel beside XLA's form of the same call; on a CPU they are interpreted."""
    names = [name for name in backends.PLATFORMS if name != "xla"]
    return {
        f"{name}, {call}": functools.partial(_kernel, size, name, call)
        for name in names
        for call in size.calls
    }


def _kernel(size: Size, name: str, call: str) -> dict[str, Any]:
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(jax.default_backend(), jax.default_backend())
    if platform not in (*backends.PLATFORMS[name], "cpu"):
        runs = " and ".join(backends.PLATFORMS[name])
        raise SkippedError(f"{name} runs on {runs}, this is {platform}")
    room = cases.PAGE * size.blocks
    fills = np.random.default_rng(0).integers(1, room - 8, 8 if size.heads > 1 else 2)
    shape: dict[str, Any] = {"heads": size.heads, "size": 128, "blocks": size.blocks}
    how: dict[str, Any] = {"dtype": "bfloat16", "turned": True, **CALLS[call]}
    case = cases.make(0, fills.tolist(), **shape, **how)
    kernel = functools.partial(backends.load(name), interpret=platform == "cpu")
    run = lambda: kernel(*case.arguments())
    stores = Store(*case.keys), Store(*case.values)
    ask = lambda: _twin(case.asked, *stores, case.table, case.ends)
    first, wanted = jax.tree.leaves(run()), ask()[0].astype(jnp.float32)
    far = float(jnp.abs(first[0].astype(jnp.float32) - wanted).max())
    same = all(_equal(first, jax.tree.leaves(run())) for _ in range(size.same))
    began = time.perf_counter()
    jax.block_until_ready([run() for _ in range(size.same)])
    return {
        "difference": round(far, 5),
        "allowed": KERNEL_TOLERANCE,
        "repeats": size.same,
        "same_bits": same,
        "seconds": round((time.perf_counter() - began) / size.same, 6),
        "seconds_xla": min(seconds(ask, size.repeats)),
        "interpreted": platform == "cpu",
        "good": same and far <= KERNEL_TOLERANCE,
    }


_twin = jax.jit(store_and_attend)


def _equal(some: list[Any], others: list[Any]) -> bool:
    """Every bit; NaN is where nothing was ever stored."""
    bits = lambda x: np.asarray(x).view(np.uint8)
    return all(np.array_equal(bits(x), bits(y)) for x, y in zip(some, others, strict=True))
