"""A step of training on a CPU beside transformers and PEFT, on the same weights and rows.

    python -m benchmarks.finetune [--tiny] [--rounds 7] [--folder /tmp]

LoRA of the original's settings on every linear layer, and full training, a Qwen2 shape. The first
losses must agree; under full training, which drops nothing, so must those of the next steps. Then
each takes its turn in every round. Writes benchmarks/results/finetune_cpu.json.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.support import record
from benchmarks.support.checkpoints import TINY, Shape, write_hf, write_native
from benchmarks.support.race import PAUSE, Runner, ratio

SMALL = Shape(layers=8, width=512, heads=8, mlp=1408, vocab=32_000)
ROWS = {"4 x 256": (4, 256)}
US, THEM = "qwen_jax", "transformers + PEFT"
AGREED = {"float32": 1e-4, "bfloat16": 2e-2}  # losses, relative
CHECKED = 3  # steps whose losses are compared


def race(root: Path, shape: Shape, method: str, dtype: str, rows: str, rounds: int) -> Any:
    """One case: both trainers, step after step in turns."""
    random = np.random.default_rng(0)
    batch = random.integers(0, shape.vocab, ROWS[rows]).tolist()
    models = {US: root / "native", THEM: root / "hf"}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    losses: dict[str, list[float]] = {name: [] for name in models}
    with contextlib.ExitStack() as stack:
        runners = {}
        for name, model in models.items():
            runner = stack.enter_context(Runner(name, model, dtype, "benchmarks.support.trainers"))
            runner.ready()
            runner.ask("start", method=method, steps=CHECKED + rounds)
            runners[name] = runner
        for number in range(CHECKED + rounds):
            for name, runner in runners.items():
                done = runner.ask("step", rows=batch)
                losses[name].append(done["loss"])
                if number >= CHECKED:
                    seconds[name].append(done["seconds"])
                time.sleep(PAUSE)
        peaks = {name: runner.ask("peak") for name, runner in runners.items()}
    compared = CHECKED if method == "full" else 1
    first = {name: values[:compared] for name, values in losses.items()}
    np.testing.assert_allclose(first[US], first[THEM], rtol=AGREED[dtype])
    return {
        "case": f"{method} {dtype}, {rows} tokens",
        "losses": first,
        "seconds": {name: round(statistics.median(s), 4) for name, s in seconds.items()},
        "time_ratio": ratio(seconds[US], seconds[THEM]),
        "peak_megabytes": {name: round(size / 1e6) for name, size in peaks.items()},
        "peak_ratio": round(peaks[US] / peaks[THEM], 3),
    }


def main(tiny: bool = False, rounds: int = 7, folder: Path | None = None) -> None:
    """Args: tiny: a test of this file, which writes nothing. folder: for 1 GB of checkpoints."""
    shape, results = TINY if tiny else SMALL, []
    with tempfile.TemporaryDirectory(dir=folder) as made:
        root = Path(made)
        write_native(write_hf(root / "hf", shape, "qwen2"), root / "native")
        for method in ("lora", "full"):
            for dtype in ("float32", "bfloat16"):
                for rows in list(ROWS)[: 1 if tiny else None]:
                    results.append(race(root, shape, method, dtype, rows, rounds))
                    print(table(results[-1:]), flush=True)
    if not tiny:
        packages = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft")
        content = {
            "command": "python -m benchmarks.finetune",
            "machine": record.machine(),
            "versions": record.versions(*packages),
            "shape": vars(shape),
            "rounds": rounds,
            "cases": results,
        }
        print(record.write("finetune_cpu", content), file=sys.stderr)


def table(results: list[dict[str, Any]]) -> str:
    """The rows that are shown as they come."""
    return "\n".join(
        f"| {r['case']} | {r['seconds'][US]:.3f} | {r['seconds'][THEM]:.3f} "
        f"| {r['time_ratio']['median']:.2f} | {r['peak_megabytes'][US]} "
        f"| {r['peak_megabytes'][THEM]} | {r['peak_ratio']:.2f} |"
        for r in results
    )


if __name__ == "__main__":
    tyro.cli(main)
