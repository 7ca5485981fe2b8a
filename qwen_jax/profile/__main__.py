"""Speed and memory of generation, as the original's tables have them: python -m qwen_jax.profile.

Each measurement generates LENGTH tokens from a prompt of one, greedily and past every end. The
original's figures are tokens a second and the memory of one A100-SXM4-80G.
"""

import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from qwen_jax import distributed, memory
from qwen_jax.checkpoint import load
from qwen_jax.cli import run
from qwen_jax.decoding.completion import stream_completions
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.files import atomic
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh

# (model, precision): tokens a second, gigabytes of memory, generating 2048 tokens on an A100
PUBLISHED = {
    ("qwen-1.8b-chat", "bfloat16"): (54.09, 4.23),
    ("qwen-1.8b-chat", "int8"): (55.56, 3.48),
    ("qwen-1.8b-chat", "int4"): (71.07, 2.91),
    ("qwen-7b-chat", "bfloat16"): (40.93, 16.99),
    ("qwen-7b-chat", "int8"): (37.47, 11.20),
    ("qwen-7b-chat", "int4"): (50.09, 8.21),
    ("qwen-14b-chat", "bfloat16"): (32.22, 30.15),
    ("qwen-14b-chat", "int8"): (29.28, 18.81),
    ("qwen-14b-chat", "int4"): (38.72, 13.01),
    ("qwen-72b-chat", "bfloat16"): (8.48, 144.69),  # two of them
    ("qwen-72b-chat", "int8"): (9.05, 81.27),  # two of them
    ("qwen-72b-chat", "int4"): (11.32, 48.86),
}
# Qwen-7B, generating 1024 tokens: gigabytes by batch, without and with its int8 cache
PUBLISHED_BATCHES = {
    "bfloat16": {1: 16.3, 4: 24.1, 16: 31.7, 32: 48.7},
    "int8": {1: 15.5, 4: 17.2, 16: 22.3, 32: 30.2, 64: 48.2, 100: 72.4},
}


def measure(params: Qwen, length: int, batch: int, cache_dtype: Any) -> dict[str, Any]:
    """Tokens a second of one measurement, and the most memory so far.

    Compiling and the first tokens are left out of the time.
    """
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    prompts, seen = [[1]] * batch, []
    for answers in stream_completions(
        params, prompts, sampling, max_new_tokens=length, seed=0, cache_dtype=cache_dtype
    ):
        seen.append((time.perf_counter(), sum(len(answer.tokens) for answer in answers)))
    (start, first), (end, last) = seen[min(1, len(seen) - 2)], seen[-1]
    peak = memory.peak(params)
    return {
        "length": length,
        "batch": batch,
        "cache": str(cache_dtype or "default"),
        "tokens_per_second": round((last - first) / max(end - start, 1e-9), 2),
        "peak_bytes": peak or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "peak_of": "device" if peak else "process",
    }


def precision(params: Qwen) -> str:
    """What most of the weights' bytes are: bfloat16, int8, int4, ..."""
    from qwen_jax.nn.quant import at_rest

    found = memory.by_dtype(jax.tree.leaves(at_rest(params).blocks))
    return max(found, key=lambda name: found[name])


def beside(name: str, kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row with what was published for the same measurement, where something was."""
    plain = name.lower().replace("_", ".")
    model = next((m for m, _ in PUBLISHED if plain == m or plain.startswith(f"{m}-")), "")
    speed, size = None, None
    if row["length"] == 2048 and row["batch"] == 1:
        speed, size = PUBLISHED.get((model, kind), (None, None))
    if row["length"] == 1024 and plain.startswith("qwen-7b") and kind == "bfloat16":
        cache = "int8" if row["cache"] == "int8" else "bfloat16"
        size = PUBLISHED_BATCHES[cache].get(row["batch"])
    return row | {"published_tokens_per_second": speed, "published_gigabytes": size}


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['model']}, {report['precision']}, {report['device']}",
        "",
        "| generated | batch | cache | tokens/s | A100 | peak GB | A100 |",
        "|--:|--:|---|--:|--:|--:|--:|",
    ]
    known = lambda value: "" if value is None else f"{value:g}"
    for row in report["rows"]:
        lines.append(
            f"| {row['length']} | {row['batch']} | {row['cache']} | {row['tokens_per_second']:g} "
            f"| {known(row['published_tokens_per_second'])} | {row['peak_bytes'] / 1e9:.2f} "
            f"| {known(row['published_gigabytes'])} |"
        )
    of = {row["peak_of"] for row in report["rows"]}
    return "\n".join([*lines, "", f"Peak memory of the {' or '.join(sorted(of))} so far."])


def draw(report: dict[str, Any], path: Path) -> None:
    """Tokens a second and memory, a bar for each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{row['length']} × {row['batch']}\n{row['cache']}" for row in report["rows"]]
    left.bar(names, [row["tokens_per_second"] for row in report["rows"]], color="#5b3fa0")
    left.set_ylabel("tokens a second")
    right.bar(names, [row["peak_bytes"] / 1e9 for row in report["rows"]], color="#3f7fa0")
    right.set_ylabel("peak memory, GB")
    figure.suptitle(f"{report['model']}, {report['precision']}, {report['device']}")
    figure.savefig(path, dpi=150)


def main(
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    lengths: str = "2048,8192",
    batches: str = "1",
    cache_dtypes: str = "default",
    output: Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    mesh_data: int = 1,
    mesh_fsdp: int = 1,
    mesh_tensor: int | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Measure speed and memory of generation, beside the original's figures.

    Args:
        folder: Folder that `python -m convert` wrote, or "demo".
        lengths: Numbers of tokens to generate, with commas between them.
        batches: Numbers of answers at once, with commas between them.
        cache_dtypes: Types of cached keys and values: default, bfloat16, int8, ...
        output: Folder for profile.json, profile.md and, with matplotlib, profile.png.
        dtype: Type of the parameters; by default, as stored.
        mesh_data: Devices that hold copies of the model.
        mesh_fsdp: Devices that split the weights' width.
        mesh_tensor: Devices that share each matrix product; by default, all that are left.
        coordinator: HOST:PORT of process 0 in a run of several, or "auto" to ask the machines; by
            default, what the environment, Slurm or the TPU says.
        processes: Number of processes in the run.
        process: Number of this process, counted from 0.
    """
    wanted = [
        (length, batch, None if cache == "default" else cache)
        for cache in cache_dtypes.split(",")
        for batch in _numbers("batches", batches)
        for length in _numbers("lengths", lengths)
    ]
    distributed.join(coordinator, processes, process)
    split = jax.device_count() > 1 or (mesh_data, mesh_fsdp, mesh_tensor) != (1, 1, None)
    params = load(folder, make_mesh(mesh_data, mesh_fsdp, mesh_tensor) if split else None, dtype)
    name, kind = Path(folder).name, precision(params)
    device = jax.devices()[0]
    report: dict[str, Any] = {"model": name, "precision": kind, "rows": []}
    report |= {"device": f"{device.device_kind} x {jax.device_count()}", "jax": jax.__version__}
    for length, batch, cache in wanted:
        report["rows"].append(beside(name, kind, measure(params, length, batch, cache)))
        if jax.process_index() == 0:
            row = report["rows"][-1]
            print(f"{length} tokens x {batch}: {row['tokens_per_second']} tokens/s", flush=True)
    if jax.process_index() == 0:
        print(f"\n{table(report)}")
        if output is not None:
            _write(report, output)


def _numbers(name: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part) <= 1 << 20 for part in parts):
        raise ValueError(f"--{name} is {text!r}, wanted numbers from 1 on with commas between them")
    return [int(part) for part in parts]


def _write(report: dict[str, Any], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    atomic.write_text(output / "profile.json", json.dumps(report, indent=1))
    atomic.write_text(output / "profile.md", table(report) + "\n")
    try:
        draw(report, output / "profile.png")
    except ModuleNotFoundError:
        print('no picture: pip install "qwen_jax[train]" brings matplotlib')


def command(
    arguments: Sequence[str] | None = None, prog: str = "python -m qwen_jax.profile"
) -> None:
    tyro.cli(main, prog=prog, args=arguments)


if __name__ == "__main__":
    run(command)
