"""Will it fit, and how fast can it be: python -m qwen_jax.plan --model Qwen-72B --mesh v5e:4x8."""

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from qwen_jax.cli import run
from qwen_jax.plan.chips import Remat, Work, split

if TYPE_CHECKING:
    from qwen_jax.config import Config
    from qwen_jax.plan.estimate import Job

GROUPS = {  # of --help
    "model": "model precision cache_dtype",
    "work": "work context batch remat",
    "devices": "mesh mesh_data mesh_fsdp mesh_tensor",
    "results": "json compile",
}
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def main(
    model: str,
    mesh: str,
    precision: Literal["bfloat16", "int8", "int4"] = "bfloat16",
    cache_dtype: Literal["bfloat16", "int8", "float32"] = "bfloat16",
    context: int = 8192,
    batch: int = 1,
    work: Work = "generate",
    remat: Remat = "full",
    mesh_data: int = 1,
    mesh_fsdp: int = 1,
    mesh_tensor: int | None = None,
    json: Switch = False,
    compile: Switch = False,
) -> None:
    """Count what a model takes on devices that need not be there.

    Args:
        model: Published model such as Qwen-72B, "demo", or a folder with its config.json.
        mesh: Devices, such as v5e:4x8, h200:8 or h200.
        precision: Type of the weights.
        cache_dtype: Type of cached keys and values.
        context: Tokens of a row, prompt and answer together.
        batch: Rows at once, on all devices together.
        work: Generation, or training of adapters (rank 64) or of all weights.
        remat: What training computes again in the backward pass: no product (none), all but the
            linear layers' (dots), or all (full).
        mesh_data: Devices that hold copies of the model.
        mesh_fsdp: Devices that split the weights' width.
        mesh_tensor: Devices that share each matrix product; by default, all that are left.
        json: Print JSON; sizes are bytes on each device.
        compile: Compile the program for these devices, which need not be there, and say what it
            takes; for generation, with the wheels of jax[cuda13] or jax[tpu].
    """
    from qwen_jax.program import imports, limits, progress

    limits.expect(
        context=context,
        batch=batch,
        mesh_data=mesh_data,
        mesh_fsdp=mesh_fsdp,
        mesh_tensor=mesh_tensor,
    )
    axes, config = split(mesh, mesh_data, mesh_fsdp, mesh_tensor), _config(model)
    if compile and work != "generate":
        raise ValueError("--compile is for generation; training: python -m benchmarks.plans")
    with imports.of_jax():  # late: --help and a wrong option need none
        from qwen_jax.plan import compiled
        from qwen_jax.plan.estimate import Job, as_json

    job = Job(config, mesh, *axes, precision, cache_dtype, context, batch, work, remat)
    with progress.working("counting"):
        found = as_json(job)
    if compile:
        with progress.working("compiling"):
            found["compiled"] = compiled.in_a_child(job)
    print(dumps(found, indent=1) if json else table(model, job, found))


def _config(model: str) -> "Config":
    from qwen_jax import bundled
    from qwen_jax.config import Config
    from qwen_jax.files import strict_json
    from qwen_jax.plan import models

    file = (bundled.CHECKPOINT if model == "demo" else Path(model)) / "config.json"
    return Config.from_hf(strict_json.read(file)) if file.exists() else models.config(model)


def table(model: str, job: "Job", found: dict[str, Any]) -> str:
    """For people."""
    doing = "generating" if job.work == "generate" else f"training ({job.work})"
    lines = [
        f"{model}, {job.precision}, {doing} on {job.mesh}: data {job.data} x fsdp {job.fsdp} x "
        f"tensor {job.tensor}, {job.batch} rows of {job.context} tokens",
        "",
        "on each device, GB",
    ]
    for name in ("weights", "cache", "activations", "optimizer", "total"):
        share = found[name] / found["memory"]
        lines.append(f"  {name:<12}{found[name] / 1e9:>9.2f}  {'█' * round(40 * min(share, 1.5))}")
    verdict = "fits" if found["fits"] else "DOES NOT FIT"
    lines += [f"  {'memory':<12}{found['memory'] / 1e9:>9.2f}  {verdict}", "", *found["undivided"]]
    for name, value in found["limits"].items():
        lines.append(f"limit, {name.replace('_', ' ')}: {value:,.0f}")
    lines.append(f"largest context with {job.batch} rows: {found['most_context']:,} tokens")
    lines.append(f"most rows of {job.context} tokens: {found['most_batch']:,}")
    if "compiled" in found:
        lines.append(f"compiled: {found['compiled']['peak'] / 1e9:.2f} GB on each device")
    if found["smallest"]:
        lines.append(f"smallest slice that holds this: {found['smallest']}")
    return "\n".join(lines)


def command(arguments: Sequence[str] | None = None, prog: str = "python -m qwen_jax.plan") -> None:
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard

    reading.read(main, prog, arguments, GROUPS)


if __name__ == "__main__":
    run(command)
