"""A job's program, compiled for devices that are not there: what it really takes.

The GPU's compiler needs jax-cuda13-plugin and NVIDIA's wheels, the TPU's needs libtpu; neither
needs its device. Nothing is allocated: arrays are shapes with places.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from qwen_jax.config import Config
from qwen_jax.plan.chips import CHIPS, parse
from qwen_jax.plan.estimate import CHUNK, PRECISIONS, Job

ENVIRONMENT = {
    "gpu": {
        "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # autotuning would need the GPU
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # so would asking for CUPTI's version
    },
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


def devices(topology: str) -> Any:
    """Those of "h200", or of a TPU slice such as "v5e:4x4"."""
    from jax.experimental import topologies

    options: dict[str, Any] = {"platform": "tpu", "topology_name": topology}
    if topology == "h200":
        options = {"platform": "cuda", "target_config": H200, "topology": "1x1x1"}
    return topologies.get_topology_desc(**options).devices


def around(where: Any) -> Any:
    """A context for lowering: kernels ask it which chip a mesh, or a device, is."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    mesh = where if isinstance(where, Mesh) else Mesh(np.array([where]), ("device",))
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def sizes(compiled: Any) -> dict[str, int]:
    """Bytes on each device."""
    memory = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp")
    found = {name: getattr(memory, f"{name}_size_in_bytes") for name in names}
    peak = found["argument"] + found["output"] - found["alias"] + found["temp"]
    return found | {"peak": peak}


def measure(job: Job) -> dict[str, int]:
    """Bytes on each device of a decode step and of a chunk's prefill, whichever takes more."""
    import jax.numpy as jnp

    from qwen_jax.decoding import aot
    from qwen_jax.nn import quant, sharding

    chip, count = parse(job.mesh)
    found = devices(job.mesh if CHIPS[chip].tpu else chip)
    if len(found) != count:
        raise ValueError(f"--compile knows one {chip}, not {count} of them")
    axes = {"data": job.data, "fsdp": job.fsdp, "tensor": job.tensor}
    where = sharding.make_mesh(**axes, devices=found) if count > 1 else found[0]
    plan = PRECISIONS[job.precision]
    formats = quant.plan(job.config, *plan) if plan else None
    params = aot.params(job.config, jnp.bfloat16, where, formats)
    state = aot.state(params, job.batch, job.context, job.cache_dtype)
    with around(where):
        programs = aot.step(params, state, 64), aot.prefill(params, state, min(CHUNK, job.context))
        lowered = [program.lower() for program in programs]
    return max((sizes(one.compile()) for one in lowered), key=lambda size: size["peak"])


def in_a_child(job: Job) -> dict[str, int]:
    """`measure` in a process with the compiler's settings."""
    chip, _ = parse(job.mesh)
    if not CHIPS[chip].tpu and chip != "h200":
        raise ValueError(f"--compile knows h200 and TPUs, got {job.mesh}")
    settings = ENVIRONMENT["tpu" if CHIPS[chip].tpu else "gpu"] | {"JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-m", "qwen_jax.plan.compiled"],
        input=json.dumps(asdict(job)).encode(),
        env=os.environ | settings,
        capture_output=True,
        check=False,
    )
    if run.returncode:
        last = (run.stderr.decode(errors="replace").strip().splitlines() or ["nothing said"])[-1]
        raise ValueError(f"cannot compile for {job.mesh}: {last}")
    found: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return found


def told(text: str | bytes) -> Job:
    """The job that `in_a_child` tells."""
    values = json.loads(text)
    return Job(config=Config(**values.pop("config")), **values)


if __name__ == "__main__":
    print(json.dumps(measure(told(sys.stdin.buffer.read()))))
