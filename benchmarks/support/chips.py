"""Accelerators that are not there: what they hold, and programs compiled for them.

The GPU's compiler needs jax-cuda13-plugin and NVIDIA's wheels, the TPU's needs libtpu; neither
needs its device. Nothing is allocated: arrays are shapes with places.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.support import record
from benchmarks.support.hlo import Array
from qwen_jax.plan.compiled import ENVIRONMENT, around, devices, sizes

__all__ = ["ENVIRONMENT", "HBM", "MIB", "MODELS"]
__all__ += ["around", "command", "devices", "local", "sizes", "write"]
MIB = 2**20
HBM = {"h200": 140e9, "v5e": 16e9, "v5p": 95e9, "v6e": 32e9}  # bytes that a device has for us
_COMMON: dict[str, Any] = {
    "norm_eps": 1e-6,
    "qkv_bias": True,
    "qk_norm": False,
    "tied": False,
    "yarn": None,
    "ntk_length": None,
    "logn_length": None,
    "max_length": 32768,
    "init_std": 0.02,
    "head_dim": 128,
}
_V1 = {"vocab": 151936, "rope_base": 1e4, "ntk_length": 8192, "logn_length": 8192}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen-7B": _COMMON
    | _V1
    | {"width": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "mlp": 11008},
    "Qwen-14B": _COMMON
    | _V1
    | {"vocab": 152064, "width": 5120, "layers": 40, "heads": 40, "kv_heads": 40, "mlp": 13696},
    "Qwen-72B": _COMMON
    | {"vocab": 152064, "width": 8192, "layers": 80, "heads": 64, "kv_heads": 64, "mlp": 24576}
    | {"rope_base": 1e6},
    "Qwen2.5-7B": _COMMON
    | {"vocab": 152064, "width": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "mlp": 18944}
    | {"rope_base": 1e6},
}


def local(tree: Any) -> list[Array]:
    """Every array of a tree as one device holds it."""
    import jax

    part = lambda x: x.sharding.shard_shape(x.shape)
    names = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}
    names |= {"int8": "s8", "int4": "s4", "uint8": "u8"}
    return [Array(names.get(str(x.dtype), "s32"), part(x), False) for x in jax.tree.leaves(tree)]


def write(
    name: str, platform: str, environment: dict[str, str], results: list[Any], **more: Any
) -> None:
    """benchmarks/results/{name}_{platform}.json, with what it was compiled by."""
    plugin = {"gpu": ("jax-cuda13-plugin", "nvidia-cudnn-cu13"), "tpu": ("libtpu",)}[platform]
    report: dict[str, Any] = {"versions": record.versions("jax", "jaxlib", "flax", *plugin)}
    report |= {"environment": environment, **more, "results": results}
    record.write(f"{name}_{platform}", report)


def command(
    module: str,
    environment: dict[str, dict[str, str]],
    compile_platform: Callable[[str], bool],
    arguments: list[str],
) -> int:
    """`python -m module gpu|tpu|all`: each platform in a process with its environment."""
    match arguments:
        case [("gpu" | "tpu") as platform, "here"]:
            return 0 if compile_platform(platform) else 1
        case [("gpu" | "tpu" | "all") as which]:
            platforms: Iterable[str] = ("gpu", "tpu") if which == "all" else (which,)
            return max(_child(module, environment[platform], platform) for platform in platforms)
    print(f"usage: python -m {module} gpu|tpu|all", file=sys.stderr)
    return 2


def _child(module: str, environment: dict[str, str], platform: str) -> int:
    variables = os.environ | environment | {"JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, "-m", module, platform, "here"]
    return subprocess.run(arguments, env=variables, check=False).returncode
