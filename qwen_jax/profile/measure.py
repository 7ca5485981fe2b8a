"""The measurements of a profile, beside what was published."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import jax

from qwen_jax import memory
from qwen_jax.decoding.completion import stream_completions
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.files import atomic
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.quant import at_rest

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


def measure(
    params: Qwen, length: int, batch: int, cache_dtype: Any, attention: str | None = None
) -> dict[str, Any]:
    """Tokens a second of one measurement, and the most memory so far.

    Compiling and the first tokens are left out of the time.
    """
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    prompts, seen = [[1]] * batch, []
    for answers in stream_completions(
        params,
        prompts,
        sampling,
        max_new_tokens=length,
        seed=0,
        cache_dtype=cache_dtype,
        draft_tokens=0,  # what is written repeats itself, and would be drafted
        attention=attention,
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


def write(report: dict[str, Any], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    atomic.write_text(output / "profile.json", json.dumps(report, indent=1))
    atomic.write_text(output / "profile.md", table(report) + "\n")
    try:
        draw(report, output / "profile.png")
    except ModuleNotFoundError:
        print('no picture: pip install "qwen_jax[train]" brings matplotlib')
