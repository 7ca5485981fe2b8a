"""Where arrays lie on a mesh: one table from logical axes to mesh axes.

Mesh axes: `data` splits requests or batches, `fsdp` splits them and the weights' width,
`tensor` splits heads, mlp and vocabulary, and never changes a result. Inputs that it does not
divide stay together and the outputs are cut instead; heads that it does not divide are cut as
rows, and `heads` makes them whole for attention. Any other size that does not divide lies whole
on every device: it costs memory.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.config import Config
from qwen_jax.nn.model import Axes, LinearLayer, Qwen, Shape
from qwen_jax.nn.quant import Format, QuantLinear, build, pieces
from qwen_jax.nn.tree import Tree, map_layers, named_layers

AXES = ("data", "fsdp", "tensor")
RULES: dict[str, tuple[str, ...]] = {
    "slot": ("data", "fsdp"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "width": ("fsdp",),
    "outputs": ("tensor", "fsdp"),  # the width, where the inputs beside it cannot be cut
}
INPUTS = {"out": "heads", "down": "mlp"}  # of the layers whose inputs `tensor` splits


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int | None = None, devices: Any = None) -> Mesh:
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


def ways(mesh: Mesh | AbstractMesh, axis: str) -> int:
    """How many parts a logical axis is cut into."""
    return math.prod(mesh.shape[name] for name in RULES[axis])


def spec(mesh: Mesh, axes: tuple[str | None, ...], counts: tuple[int, ...]) -> P:
    """The partition of an array with these logical axes; counts[i]: what axis i may be cut into."""

    def cut(axis: str | None, count: int) -> tuple[str, ...] | None:
        parts = ways(mesh, axis) if axis else 1
        return RULES[axis] if axis and parts > 1 and count % parts == 0 else None

    return P(*(cut(axis, count) for axis, count in zip(axes, counts, strict=True)))


def dividing(mesh: Mesh, axes: tuple[Any, ...], shape: Shape) -> P:
    """The partition along mesh axes, without those that a shape does not divide by."""

    def parts(names: Any) -> int:
        return math.prod(
            mesh.shape[name] for name in (names if isinstance(names, tuple) else [names])
        )

    return P(*(a if a and n % parts(a) == 0 else None for a, n in zip(axes, shape, strict=True)))


def _divides(config: Config, mesh: Mesh, axis: str | None, inputs: int) -> bool:
    """Whether a mesh can cut so many inputs, or groups of them; heads are cut between them only."""
    count = math.gcd(config.kv_heads, inputs) if axis == "heads" else inputs
    return axis is None or count % ways(mesh, axis) == 0


def shardings(config: Config, mesh: Mesh, formats: Mapping[str, Format] | None = None) -> Qwen:
    """The network's tree with a NamedSharding for every leaf; formats: of its quantised layers."""

    def leaf(shape: Shape, axes: Axes, kind: str) -> NamedSharding:
        if len(shape) == 1:
            return NamedSharding(mesh, spec(mesh, axes, shape))
        out, inputs = shape
        inputs = math.gcd(inputs, inputs // 2) if kind == "int4" else inputs  # two share a byte
        split = axes[1] in INPUTS.values() and inputs > 1
        if split and not _divides(config, mesh, axes[1], inputs):
            axes = ("outputs" if out % ways(mesh, "outputs") == 0 else axes[0], None)
        return NamedSharding(mesh, spec(mesh, axes, (out, inputs)))

    formats = formats or {}
    made = build(config, formats, leaf)
    for name, layer in named_layers(made, QuantLinear).items():
        if formats[name].groups > 1:
            layer.codes = layer.scales  # codes are cut between groups only
    return made


@nnx.dataclass
class Gathered(LinearLayer):
    """A layer whose outputs the devices share out, and exchange before anything else is done.

    Asked for whole outputs alone, XLA collects the weights instead.
    """

    layer: Any
    mesh: Mesh = nnx.static()

    def __call__(self, x: Array) -> Array:
        return self._whole(self.layer(x))

    def float32(self, x: Array) -> Array:
        return self._whole(self.layer.float32(x))

    def _whole(self, y: Array) -> Array:
        others = [P.UNCONSTRAINED] * (y.ndim - 1)
        for names in (RULES["outputs"][0], None):
            y = jax.lax.with_sharding_constraint(y, NamedSharding(self.mesh, P(*others, names)))
        return y


def gathered(blocks: Tree, config: Config, mesh: Mesh | None) -> Tree:
    """A network, or a block, for use in a program: where heads or inputs do not divide the mesh."""
    if mesh is None or mesh.shape["tensor"] == 1:
        return blocks

    def change(name: str, layer: Any) -> Any:
        word = name.rpartition(".")[2]
        if word == "qkv":
            even = config.kv_heads % ways(mesh, "heads") == 0
        else:
            even = word not in INPUTS or cuts_inputs(name, layer, config, mesh)
        return layer if even else Gathered(layer, mesh)

    return map_layers(change, blocks, LinearLayer)


def cuts_inputs(name: str, layer: Any, config: Config, mesh: Mesh) -> bool:
    """Whether `tensor` cuts the inputs of a layer, as `shardings` lays it, and not its outputs."""
    axis = next((INPUTS[word] for word in name.split(".") if word in INPUTS), None)
    return axis is not None and _divides(config, mesh, axis, pieces(layer))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh a tree's arrays lie on, None for arrays on one device."""
    for array in jax.tree.leaves(tree):
        sharding = getattr(array, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None
