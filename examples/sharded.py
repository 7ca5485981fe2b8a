"""A model split over a mesh of devices: eight that a CPU pretends to be, if there are no others.

python examples/sharded.py [FOLDER]
"""

import os
import sys

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # read when JAX starts; GPUs and TPUs ignore it

import jax

import qwen_jax
from qwen_jax.nn.sharding import make_mesh

count = jax.device_count()
if count % 4:
    sys.exit(f"this example splits by 2 x 2 and the rest, got {count} devices, wanted 4, 8, …")
mesh = make_mesh(data=count // 4, fsdp=2, tensor=2)
params = qwen_jax.load(sys.argv[1] if len(sys.argv) > 1 else "demo", mesh=mesh)

kernel = params.blocks[0].mlp.up.kernel  # [F D]
print("mesh:", dict(mesh.shape))
print(f"mlp.up: {kernel.shape} in pieces of {kernel.sharding.shard_shape(kernel.shape)}")

reply, _ = qwen_jax.chat(params, "What does sharding mean?", seed=1, max_new_tokens=48)
print(reply)
