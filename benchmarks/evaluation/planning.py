"""The plan against real compilations, by the command's own --compile: make plan-compiled.

    python -m benchmarks.evaluation.planning [--only v6e]

Twelve cases, of which the training ones are those of `make plans`. Each is written to
benchmarks/results/plan_compiled.json as soon as it is compiled, in minutes of a small CPU, and
is not compiled again.
"""

import json
import time
from typing import Any

import tyro

from benchmarks.support import record
from qwen_jax.plan import compiled, models
from qwen_jax.plan.chips import Work, split
from qwen_jax.plan.estimate import Job, count

# model, precision, mesh, tokens of a row, rows
GENERATING = (
    ("Qwen-1.8B", "bfloat16", "v6e:2x2", 2048, 4),
    ("Qwen2.5-7B", "bfloat16", "v6e:2x2", 8192, 8),
    ("Qwen-7B", "bfloat16", "v5e:2x2", 8192, 2),
    ("Qwen-14B", "bfloat16", "v5e:4x4", 8192, 4),
    ("Qwen-72B", "int8", "v5e:4x8", 8192, 4),
    ("Qwen-14B", "bfloat16", "v5p:2x2x1", 8192, 4),
    ("Qwen-7B", "bfloat16", "h200", 8192, 4),
    ("Qwen-72B", "int8", "h200", 8192, 1),
    ("Qwen2.5-32B", "int4", "h200", 32768, 4),
)
TRAINED = ("plans_gpu", 1), ("plans_tpu", 2)  # results, and how many of them


def job(model: str, mesh: str, precision: str, context: int, batch: int, **more: Any) -> Job:
    work: Work = more.get("work", "generate")
    axes: tuple[int, int, int] = more.get("axes") or split(mesh, 1, 1, None)
    config, remat = models.config(model), more.get("remat", "full")
    return Job(config, mesh, *axes, precision, "bfloat16", context, batch, work, remat)


def beside(name: str, planned: Job, peak: int, **more: Any) -> dict[str, Any]:
    total = count(planned).total
    apart = round(total / peak - 1, 4)
    return {"case": name, "planned": round(total), "compiled": peak, "apart": apart} | more


def training() -> list[dict[str, Any]]:
    rows = []
    for name, number in TRAINED:
        for case in json.loads((record.RESULTS / f"{name}.json").read_text())["results"][:number]:
            axes = tuple(case["mesh"].get(axis, 1) for axis in ("data", "fsdp", "tensor"))
            planned = job(
                case["model"],
                case["topology"],
                "bfloat16",
                case["length"],
                case["rows"] * axes[0] * axes[1],
                work=case["method"],
                axes=axes,
                remat=case["remat"],
            )
            rows.append(beside(case["case"], planned, case["bytes"]["peak"]))
    return rows


def main(only: str = "") -> None:
    """Compile what is not compiled yet.

    Args:
        only: Words that a case's name has, such as v6e.
    """
    for model, precision, mesh, context, batch in GENERATING:
        name = f"{model} {precision} {context} x {batch}, {mesh}"
        planned = job(model, mesh, precision, context, batch)
        if only in name and name not in [row["case"] for row in known()]:
            began = time.monotonic()
            size = compiled.in_a_child(planned)
            more = {"seconds": round(time.monotonic() - began), "temporaries": size["temp"]}
            row = beside(name, planned, size["peak"], **more)
            print(json.dumps(row), flush=True)
            write([*known(), row])
    write(known())


def known() -> list[dict[str, Any]]:
    """What is compiled already, be it by another process meanwhile."""
    file = record.RESULTS / "plan_compiled.json"
    return json.loads(file.read_text())["generating"] if file.exists() else []


def write(generating: list[dict[str, Any]]) -> None:
    result = {
        "command": "make plan-compiled",
        "what": "bytes on each device",
        "versions": record.versions("jax", "jaxlib", "flax", "libtpu", "jax-cuda13-plugin"),
        "generating": generating,
        "training": training(),
    }
    record.write("plan_compiled", result)


if __name__ == "__main__":
    tyro.cli(main)
