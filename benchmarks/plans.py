"""Compile the product's own training step for an H200 and for TPU pods that are not there.

    python -m benchmarks.plans gpu|tpu|all

Each result says what a device would hold and what one update sends. Checked are: it fits, nothing
copies a weight, and no weight is gathered in float32. A copy is an array with the dimensions of a
layer's matrix or of a stack of them, whole or a device's part, that something gives which only
moves or converts. Listed apart are the scan's cut of a layer out of its stack ("slice") and the
bf16 form of float32 masters, made once for all layers before they are gathered ("cast"). What goes
between a TPU's on-chip memory and its main one does not count.

Results go to benchmarks/results/plans_{gpu,tpu}.json. A collective's bytes are those of its result
on one device, as often as an update runs it.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.support import chips
from benchmarks.support.chips import HBM, MODELS, local
from benchmarks.support.hlo import Array, Instruction, Module

_FREE = frozenset("parameter tuple get-tuple-element bitcast constant while call".split())
_FLOATS = ("bf16", "f32")
_MOVES = frozenset("copy transpose convert reshape slice dynamic-slice concatenate pad".split())


@dataclass(frozen=True)
class Case:
    model: str
    method: str  # "lora" or "full"
    chip: str
    topology: str
    mesh: dict[str, int]
    rows: int  # of a device at once
    remat: str
    accumulate: int = 1  # so often before an update
    length: int = 2048

    def __str__(self) -> str:
        mesh = " x ".join(f"{axis} {n}" for axis, n in self.mesh.items()) or "one device"
        work = f"{self.length} x {self.rows}"
        work += f" x {self.accumulate}" if self.accumulate > 1 else ""
        return f"{self.model} {self.method} {work}, remat {self.remat}, {self.chip} {mesh}"


CASES = {
    "gpu": [
        Case("Qwen-7B", "lora", "h200", "h200", {}, 1, "none", accumulate=8),
        Case("Qwen-7B", "lora", "h200", "h200", {}, 1, "full", accumulate=8),
    ],
    "tpu": [
        Case("Qwen-7B", "lora", "v5e", "v5e:4x4", {"fsdp": 16}, 2, "full"),
        Case("Qwen-14B", "full", "v5p", "v5p:4x4x4", {"fsdp": 16, "tensor": 4}, 4, "dots"),
        Case("Qwen-72B", "lora", "v5p", "v5p:4x4x4", {"fsdp": 16, "tensor": 4}, 4, "dots"),
    ],
}


def lower(case: Case) -> tuple[Any, Any]:
    """The step that the product compiles, and the network it trains."""
    import jax.numpy as jnp

    from qwen_jax.config import Config
    from qwen_jax.decoding import aot
    from qwen_jax.nn import sharding
    from qwen_jax.nn.tree import named_leaves
    from train.step import Recipe, Trainer

    mesh = sharding.make_mesh(**case.mesh, devices=chips.devices(case.topology))
    params = aot.params(Config(**MODELS[case.model]), jnp.bfloat16, mesh)
    params = _stacked(params if case.method == "full" else _adapted(params))
    trained = [n for n in named_leaves(params) if case.method == "full" or ".deltas." in n]
    recipe = Recipe(steps=1000, learning_rate=1e-4, remat=case.remat)
    rows = case.rows * mesh.shape["data"] * mesh.shape["fsdp"]
    trainer = Trainer(params, trained, recipe, jnp.bfloat16)
    return trainer.lower((case.accumulate, rows, case.length)), params


def _adapted(params: Any) -> Any:
    """Adapters of rank 64 on every linear layer, which lie as `adapters.add` puts them."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from qwen_jax.nn.lora import Delta, LoraLinear
    from qwen_jax.nn.tree import map_linears

    def change(_: str, layer: Any) -> LoraLinear:
        kernel = layer.kernel
        (out, inp), mesh = kernel.sharding.spec, kernel.sharding.mesh
        put = lambda shape, *axes: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes))
        )
        a, b = put((64, kernel.shape[1]), None, inp), put((kernel.shape[0], 64), out, None)
        return LoraLinear(layer, (Delta(a, b, None, None, 0.25, 0.05),))

    return map_linears(change, params)


def _stacked(params: Any) -> Any:
    """What `train.nn.network.stack` makes of arrays."""
    import jax

    from train.nn.network import stacked

    count = len(params.blocks)
    lay = lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=stacked(x.sharding))
    return dataclasses.replace(params, blocks=jax.tree.map(lay, params.blocks[0]))


def measure(case: Case) -> dict[str, Any]:
    """Compile one case and look at it. Sizes are bytes on each device."""
    started = time.perf_counter()
    lowered, params = lower(case)
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    seconds = {"lower": lowered_at - started, "compile": time.perf_counter() - lowered_at}
    module, sizes = Module(compiled.as_text()), chips.sizes(compiled)
    moved: dict[str, list[str]] = {"slice": [], "cast": [], "copy": []}
    for kind, instruction, array, times in _moved(module, params):
        moved[kind].append(f"{array} {times} x by {instruction}")
    wide = [
        f"{array} {times} x by {instruction}"
        for kind, arrays, times, instruction in module.sent(module.entry)
        for array in arrays
        if kind == "all-gather" and array.dtype == "f32" and _dims(array) in _matrices(params)
    ]
    checks = {
        "fits": sizes["peak"] <= HBM[case.chip],
        "no copies": not moved["copy"],
        "no float32 gathers": not wide,
    }
    return {
        "case": str(case),
        **dataclasses.asdict(case),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "bytes": sizes,
        "weights": sum(x.bytes for x in local(params)),
        "collectives": module.collectives(module.entry),
        "moved": moved,
        "float32_gathers": wide,
        "checks": checks,
        "passed": all(checks.values()),
    }


def _dims(array: Array) -> tuple[int, ...]:
    return tuple(sorted(n for n in array.shape if n > 1))


def _matrices(params: Any) -> set[tuple[int, ...]]:
    """The dimensions of matrices and their stacks, whole and as a device holds them."""
    import jax

    wholes = [x for x in jax.tree.leaves(params.blocks) if len(x.shape) == 3]
    parts = [x.sharding.shard_shape(x.shape) for x in wholes]
    return {
        tuple(sorted(n for n in shape if n > 1))
        for stack in (*(x.shape for x in wholes), *parts)
        if 64 not in stack  # adapters: a thousandth of the weights
        for shape in (stack, stack[1:])
    }


def _moved(module: Module, params: Any) -> Iterator[tuple[str, Instruction, Array, int]]:
    """What gives weights by moving or converting alone: "slice", "cast" or "copy"; how often."""
    wanted = _matrices(params)
    for instruction, times in module.runs(module.entry, fusions=False):
        steps = [instruction]
        if instruction.op == "fusion":
            steps = module.computations[instruction.called[0]]
        ops = {step.op for step in steps if step.outputs[0].dtype in _FLOATS} - _FREE  # no indices
        if not ops or not ops <= _MOVES:
            continue
        for array in instruction.outputs:
            if _dims(array) in wanted and not array.near:
                yield _kind(ops, array), instruction, array, times


def _kind(ops: set[str], array: Array) -> str:
    if "dynamic-slice" in ops and not ops & {"transpose", "convert"}:
        return "slice"
    stack = len(_dims(array)) == 3
    return "cast" if ops == {"convert"} and stack and array.dtype == "bf16" else "copy"


def _line(result: dict[str, Any]) -> str:
    """A row of the README's table."""
    sent = ", ".join(
        f"{c['count']} {kind} ({c['bytes'] / 1e9:.2f} GB)"
        for kind, c in result["collectives"].items()
    )
    size = result["bytes"]
    columns = (
        result["case"],
        *(f"{size[name] / 1e9:.1f}" for name in ("argument", "temp", "peak")),
        str(len(result["moved"]["copy"])),
        sent or "none",
    )
    return f"| {' | '.join(columns)} |"


def compile_platform(platform: str) -> bool:
    """Every case of a platform, in this process; True when all keep their bounds."""
    results = []
    for case in CASES[platform]:
        results.append(measure(case))
        print(_line(results[-1]), flush=True)
        for name, kept in results[-1]["checks"].items():
            if not kept:
                print(
                    f"FAIL: {name}: {results[-1]['moved']['copy']} {results[-1]['float32_gathers']}"
                )
    chips.write("plans", platform, chips.ENVIRONMENT[platform], results)
    return all(result["passed"] for result in results)


if __name__ == "__main__":
    sys.exit(chips.command("benchmarks.plans", chips.ENVIRONMENT, compile_platform, sys.argv[1:]))
