"""Compile the product's own step and prefill for an H200 and for TPUs that are not there.

    python -m benchmarks.aot gpu      # needs jax-cuda13-plugin and NVIDIA's wheels, no GPU
    python -m benchmarks.aot tpu      # needs libtpu, no TPU
    python -m benchmarks.aot all      # both, each in a process of its own

Nothing is allocated: weights and state are shapes with places. Each result says what a device
would hold, what one step runs and communicates, and which bounds it keeps; a result that
breaks one makes the command fail. They go to benchmarks/results/aot_{gpu,tpu}.json. What XLA
emits is exact but for the GPU's autotuning; how long it takes only a device can tell.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hlo import Array, Module

RESULTS = Path(__file__).parent / "results"
COUNT = 64  # tokens of one call of the step
MIB = 2**20
TEMPORARIES = 64 * MIB  # bound of a decode step of up to 8 slots, bytes on each device
HBM = {"h200": 140e9, "v5e": 16e9, "v5p": 95e9}  # bytes that a device has for us
ENVIRONMENT = {
    "gpu": {"XLA_FLAGS": "--xla_gpu_autotune_level=0"},  # autotuning would need the GPU
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        # Without it XLA takes whole layers of the cache into on-chip memory to write one token
        # there, and brings them back; a real TPU wants the same setting.
        "LIBTPU_INIT_ARGS": "--xla_tpu_msa_inefficient_use_to_copy_ratio=0.8",
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
QWEN_7B = _COMMON | {
    "vocab": 151936,
    "width": 4096,
    "layers": 32,
    "heads": 32,
    "kv_heads": 32,
    "mlp": 11008,
    "rope_base": 1e4,
    "ntk_length": 8192,
    "logn_length": 8192,
}
QWEN_72B = _COMMON | {
    "vocab": 152064,
    "width": 8192,
    "layers": 80,
    "heads": 64,
    "kv_heads": 64,
    "mlp": 24576,
    "rope_base": 1e6,
}
QWEN25_7B = _COMMON | {
    "vocab": 152064,
    "width": 3584,
    "layers": 28,
    "heads": 28,
    "kv_heads": 4,
    "mlp": 18944,
    "rope_base": 1e6,
}
MODELS = {"Qwen-7B": QWEN_7B, "Qwen-72B": QWEN_72B, "Qwen2.5-7B": QWEN25_7B}


@dataclass(frozen=True)
class Case:
    model: str
    chip: str
    topology: str
    mesh: dict[str, int]  # of make_mesh; empty: one device
    work: str  # "step" or "prefill"
    slots: int
    cache_dtype: str
    length: int = 2048  # of the cache, tokens; a prefill computes as many
    precision: str = (
        "bfloat16"  # of weights; or "int8" per channel, or "int4" in groups of 128 with zeros
    )

    def __str__(self) -> str:
        mesh = " x ".join(f"{axis} {n}" for axis, n in self.mesh.items()) or "one device"
        name = self.model if self.precision == "bfloat16" else f"{self.model} {self.precision}"
        return f"{name} {self.work} bs {self.slots} {self.cache_dtype}, {self.chip} {mesh}"


def _cases(platform: str) -> list[Case]:
    if platform == "gpu":
        where: tuple[str, str, dict[str, int]] = ("h200", "1x1x1", {})
    else:
        where = ("v5e", "v5e:2x2", {"tensor": 4})
    cases = [
        Case("Qwen-7B", *where, "step", slots, dtype)
        for slots in (1, 8)
        for dtype in ("bfloat16", "int8")
    ]
    cases.append(Case("Qwen2.5-7B", *where, "step", 8, "bfloat16"))
    cases.append(Case("Qwen-7B", *where, "prefill", 1, "bfloat16"))
    for precision in ("int8", "int4"):
        for slots in (1, 8, 64):  # rows of a product
            short = 2048 if slots < 64 else 128
            cases.append(
                Case("Qwen-7B", *where, "step", slots, "bfloat16", short, precision=precision)
            )
        cases.append(Case("Qwen-7B", *where, "prefill", 1, "bfloat16", precision=precision))
    if platform == "tpu":
        for mesh in ({"tensor": 64}, {"data": 4, "tensor": 16}):
            cases.append(Case("Qwen-72B", "v5p", "v5p:4x4x4", mesh, "step", 8, "bfloat16"))
    return cases


def _lower(case: Case) -> tuple[Any, Any, Any]:
    """What the product compiles for this case, and the weights and cache it compiles it for."""
    import jax.numpy as jnp
    from jax.experimental import topologies

    from qwen_jax import lowering, quant, sharding
    from qwen_jax.config import Config

    config = Config(**MODELS[case.model])
    options: dict[str, Any]
    if case.chip == "h200":
        options = {"platform": "cuda", "target_config": H200, "topology": case.topology}
    else:
        options = {"platform": "tpu", "topology_name": case.topology}
    devices = topologies.get_topology_desc(**options).devices
    where = sharding.make_mesh(**case.mesh, devices=devices) if case.mesh else devices[0]
    plans = {"int8": (8, None, False), "int4": (4, 128, True)}
    formats = quant.plan(config, *plans[case.precision]) if case.precision in plans else None
    params = lowering.params(config, jnp.bfloat16, where, formats)
    state = lowering.state(params, case.slots, case.length, case.cache_dtype)
    if case.work == "step":
        return lowering.step(params, state, COUNT).lower(), params, state
    return lowering.prefill(params, state, case.length).lower(), params, state


def _local(tree: Any) -> list[Array]:
    """Every array of a tree as one device holds it."""
    import jax

    part = lambda x: x.sharding.shard_shape(x.shape)
    names = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "int8": "s8", "int4": "s4"}
    return [Array(names.get(str(x.dtype), "s32"), part(x), False) for x in jax.tree.leaves(tree)]


def measure(case: Case) -> dict[str, Any]:
    """Compile one case and look at it. Sizes are bytes on each device."""
    started = time.perf_counter()
    lowered, params, state = _lower(case)
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    seconds = {"lower": lowered_at - started, "compile": time.perf_counter() - lowered_at}
    memory = compiled.memory_analysis()
    sizes = {
        name: getattr(memory, f"{name}_size_in_bytes")
        for name in ("argument", "output", "alias", "temp")
    }
    sizes["peak"] = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    module = Module(compiled.as_text())
    result: dict[str, Any] = {
        "case": str(case),
        **dataclasses.asdict(case),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "bytes": sizes,
        "weights": sum(x.bytes for x in _local(params)),
        "cache": sum(x.bytes for x in _local(state.cache)),
    }
    checks = {"fits": sizes["peak"] <= HBM[case.chip]}
    if case.work == "step":
        checks |= {"temporaries": sizes["temp"] <= TEMPORARIES * max(1, case.slots // 8)}
        result |= _step(module, case, params, state)
        checks |= {"no copies": not result["copies"]}
    else:
        result |= {"collectives": module.collectives(module.entry)}
    return result | {"checks": checks, "passed": all(checks.values())}


def _step(module: Module, case: Case, params: Any, state: Any) -> dict[str, Any]:
    """One pass of the decode loop: its kernels, its copies, its communication."""
    loop, model = module.loop(), MODELS[case.model]
    # half of a bfloat16 matrix, or an integer one with a byte for each number
    matrices = [
        math.prod(x.shape)
        for x in _local(params)
        if len(x.shape) > 1 and x.dtype != "f16" and x.bytes > MIB
    ]
    stores = [x.bytes for x in _local(state.cache) if len(x.shape) == 4]
    logits = range(case.slots * model["vocab"], case.slots * (model["vocab"] + 128))  # numbers
    copies = [
        f"{array} {array.bytes / MIB:.1f} MiB by {instruction}"
        for instruction, array in module.large(loop, min(matrices + stores))
        if math.prod(array.shape) not in logits
    ]
    return {
        "copy_threshold": min(matrices + stores),
        "copies": copies,
        "kernels": (kernels := module.kernels(loop)),
        "kernels_per_layer": round(kernels / model["layers"], 1),  # head and sampling included
        "collectives": module.collectives(loop),
        "estimated_cycles": module.cycles(loop) or None,
    }


def _versions(platform: str) -> dict[str, str]:
    plugin = {"gpu": ("jax-cuda13-plugin", "nvidia-cudnn-cu13"), "tpu": ("libtpu",)}[platform]
    names = ("jax", "jaxlib", "flax", *plugin)
    return {name: importlib.metadata.version(name) for name in names}


def _line(result: dict[str, Any]) -> str:
    sent = " ".join(
        f"{kind} {c['count']} ({c['bytes'] / MIB:.2f} MiB)"
        for kind, c in result["collectives"].items()
    )
    columns = (
        "ok  " if result["passed"] else "FAIL",
        f"{result['case']:53s}",
        f"temp {result['bytes']['temp'] / MIB:7.1f} MiB",
        f"peak {result['bytes']['peak'] / 1e9:6.2f} GB",
        f"copies {len(result['copies'])}" if "copies" in result else "",
        f"kernels/layer {result['kernels_per_layer']}" if "kernels" in result else "",
        f"compile {result['seconds']['compile']:.0f} s",
        sent,
    )
    return "  ".join(column for column in columns if column)


def compile_platform(platform: str) -> bool:
    """Every case of a platform, in this process; True when all keep their bounds."""
    results = []
    for case in _cases(platform):
        results.append(measure(case))
        print(_line(results[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    report = {
        "versions": _versions(platform),
        "environment": ENVIRONMENT[platform],
        "tokens_per_call": COUNT,
        "results": results,
    }
    path = RESULTS / f"aot_{platform}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return all(result["passed"] for result in results)


def main(arguments: list[str]) -> int:
    match arguments:
        case [("gpu" | "tpu") as platform, "here"]:
            return 0 if compile_platform(platform) else 1
        case [("gpu" | "tpu" | "all") as which]:
            codes = []
            for platform in ("gpu", "tpu") if which == "all" else (which,):
                environment = os.environ | ENVIRONMENT[platform] | {"JAX_PLATFORMS": "cpu"}
                command = [sys.executable, "-m", "benchmarks.aot", platform, "here"]
                codes.append(subprocess.run(command, env=environment, check=False).returncode)
            return max(codes)
    print("usage: python -m benchmarks.aot gpu|tpu|all", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
