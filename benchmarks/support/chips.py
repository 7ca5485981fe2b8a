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

MIB = 2**20
HBM = {"h200": 140e9, "v5e": 16e9, "v5p": 95e9}  # bytes that a device has for us
ENVIRONMENT = {
    "gpu": {"XLA_FLAGS": "--xla_gpu_autotune_level=0"},  # autotuning would need the GPU
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    },
}
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H200"
"""
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


def devices(topology: str) -> Any:
    """Those of "h200", or of a TPU slice such as "v5e:4x4"."""
    from jax.experimental import topologies

    options: dict[str, Any] = {"platform": "tpu", "topology_name": topology}
    if topology == "h200":
        options = {"platform": "cuda", "target_config": H200, "topology": "1x1x1"}
    return topologies.get_topology_desc(**options).devices


def local(tree: Any) -> list[Array]:
    """Every array of a tree as one device holds it."""
    import jax

    part = lambda x: x.sharding.shard_shape(x.shape)
    names = {"bfloat16": "bf16", "float32": "f32", "float16": "f16", "int8": "s8", "int4": "s4"}
    return [Array(names.get(str(x.dtype), "s32"), part(x), False) for x in jax.tree.leaves(tree)]


def sizes(compiled: Any) -> dict[str, int]:
    """Bytes on each device."""
    memory = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp")
    found = {name: getattr(memory, f"{name}_size_in_bytes") for name in names}
    peak = found["argument"] + found["output"] - found["alias"] + found["temp"]
    return found | {"peak": peak}


def write(name: str, platform: str, environment: dict[str, str], results: list[Any], **more: Any):
    """benchmarks/results/{name}_{platform}.json, with what it was compiled by."""
    plugin = {"gpu": ("jax-cuda13-plugin", "nvidia-cudnn-cu13"), "tpu": ("libtpu",)}[platform]
    report = {"versions": record.versions("jax", "jaxlib", "flax", *plugin)}
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
