"""Ceilings of the device, and whether it computes what it should."""

import contextlib
import functools
import io
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import convert
import qwen_jax
from benchmarks.accelerator.kept import Case
from benchmarks.accelerator.sizes import Size
from benchmarks.accelerator.weights import seconds
from benchmarks.support import record

GOLDEN = Path(__file__).parents[2] / "tests/golden"
GOLDENS = ("v1/base", "modern/qwen2_gqa", "modern/qwen3")
TOLERANCE = 3e-2  # of bfloat16 logits, as a share of the largest


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
