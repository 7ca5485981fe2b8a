"""Where arrays lie on a mesh: one table from logical axes to mesh axes.

Mesh axes: `data` splits requests or batches, `fsdp` splits them and the weights' width,
`tensor` splits heads, mlp and vocabulary. A size that does not divide stays whole on every
device: it costs memory, never a different result.
"""

import math
from collections.abc import Mapping

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.config import Config
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.quant import Format, QuantLinear, build
from qwen_jax.nn.tree import named_layers

AXES = ("data", "fsdp", "tensor")
RULES: dict[str, tuple[str, ...]] = {
    "slot": ("data", "fsdp"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "width": ("fsdp",),
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int | None = None, devices=None) -> Mesh:
    """A mesh over all devices of all processes; `tensor` defaults to what the others leave."""
    devices = jax.devices() if devices is None else devices
    tensor = max(1, len(devices) // (data * fsdp)) if tensor is None else tensor
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"data {data} x fsdp {fsdp} x tensor {tensor} makes {data * fsdp * tensor} devices, "
            f"there are {len(devices)}; choose sizes whose product is {len(devices)}"
        )
    # a pod's physical axes may be split: 64 chips of 4x4x4 also make data 2 x tensor 32
    grid = mesh_utils.create_device_mesh(
        (data, fsdp, tensor), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(mesh: Mesh, axes: tuple[str | None, ...], counts: tuple[int, ...]) -> P:
    """The partition of an array with these logical axes; counts[i]: what axis i may be cut into."""

    def cut(axis: str | None, count: int):
        names = RULES[axis] if axis else ()
        ways = math.prod(mesh.shape[name] for name in names)
        return names if ways > 1 and count % ways == 0 else None

    return P(*(cut(axis, count) for axis, count in zip(axes, counts, strict=True)))


def shardings(config: Config, mesh: Mesh, formats: Mapping[str, Format] | None = None) -> Qwen:
    """The network's tree with a NamedSharding for every leaf; formats: of its quantised layers."""

    def leaf(shape, axes, kind):
        # rows of heads are cut between key/value heads only, two int4 share a byte
        *counts, last = (
            math.gcd(config.kv_heads, n) if a == "heads" else n
            for a, n in zip(axes, shape, strict=True)
        )
        last = math.gcd(last, shape[-1] // 2) if kind == "int4" else last
        return NamedSharding(mesh, spec(mesh, axes, (*counts, last)))

    formats = formats or {}
    made = build(config, formats, leaf)
    for name, layer in named_layers(made, QuantLinear).items():
        if formats[name].groups > 1:
            layer.codes = layer.scales  # codes are cut between groups only
    return made


def mesh_of(tree) -> Mesh | None:
    """The mesh a tree's arrays lie on, None for arrays on one device."""
    for array in jax.tree.leaves(tree):
        sharding = getattr(array, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None
