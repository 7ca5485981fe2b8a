"""A step of training on a CPU beside transformers and PEFT, on the same weights and rows.

    python -m benchmarks.finetune [--avx2] [--tiny] [--rounds 7] [--folder /tmp]

LoRA of the original's settings on every linear layer, and full training, a Qwen2 shape. The first
losses must agree; under full training, which drops nothing, so must those of the next steps. Then
each takes its turn in every round: some steps in a row, as in a training, of which the first only
brings back what the system took while the other had its turn. A rival that needs more than a minute
for a step is ended: the minute is a bound. Ours is compared with its best type too. Writes
benchmarks/results/finetune_cpu.json; with --avx2, as on a processor without AVX-512 and bfloat16,
finetune_avx2_cpu.json.
"""

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.support import record
from benchmarks.support.checkpoints import TINY, Shape, write_hf, write_native
from benchmarks.support.race import AVX2, PAUSE, Runner, ratio

SMALL = Shape(layers=8, width=512, heads=8, mlp=1408, vocab=32_000)
ROWS = {"4 x 256": (4, 256)}
US, THEM = "qwen_jax", "transformers + PEFT"
AGREED = {"float32": 1e-4, "bfloat16": 2e-2}  # losses, relative
CHECKED = 3  # steps whose losses are compared
TURN = 3  # steps in a row, of which all but the first are timed
PATIENCE = 60.0  # seconds for a step


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
            runner.ask("start", method=method, steps=CHECKED + TURN * rounds)
            runners[name] = runner
        for count in (CHECKED, *[TURN] * rounds):
            for name, runner in list(runners.items()):
                try:
                    ask = lambda runner=runner: runner.ask("step", within=PATIENCE, rows=batch)
                    steps = [ask() for _ in range(count)]
                except TimeoutError:
                    if name == US:
                        raise
                    del runners[name]
                    continue
                losses[name] += [step["loss"] for step in steps]
                seconds[name].append(statistics.mean(step["seconds"] for step in steps[1:]))
                time.sleep(PAUSE)
        peaks = {name: runner.ask("peak") for name, runner in runners.items()}
    compared, bound = CHECKED if method == "full" else 1, THEM not in runners
    if bound:
        seconds[THEM] = [PATIENCE] * len(seconds[US])
    seconds = {name: turns[1:] for name, turns in seconds.items()}  # the first one compiles
    first = {name: values[:compared] for name, values in losses.items()}
    if not bound:
        np.testing.assert_allclose(first[US], first[THEM], rtol=AGREED[dtype])
    return {
        "case": f"{method} {dtype}, {rows} tokens",
        "method": method,
        "losses": first,
        "bound": bound,
        "seconds": {name: round(statistics.median(s), 4) for name, s in seconds.items()},
        "time_ratio": ratio(seconds[US], seconds[THEM]),
        "peak_megabytes": {name: round(size / 1e6) for name, size in peaks.items()},
        "peak_ratio": None if bound else round(peaks[US] / peaks[THEM], 3),
    }


def main(
    avx2: bool = False, tiny: bool = False, rounds: int = 7, folder: Path | None = None
) -> None:
    """Race the trainers.

    Args:
        avx2: Nobody sees more of the processor than AVX2.
        tiny: A test of this file, which writes nothing.
        rounds: Steps of each.
        folder: For 1 GB of checkpoints.
    """
    shape, results = TINY if tiny else SMALL, []
    if avx2:
        os.environ.update(AVX2)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        root = Path(made)
        write_native(write_hf(root / "hf", shape, "qwen2"), root / "native")
        for method in ("lora", "full"):
            for dtype in ("float32", "bfloat16"):
                for rows in list(ROWS)[: 1 if tiny else None]:
                    results.append(race(root, shape, method, dtype, rows, rounds))
                    print(table(results[-1:]), flush=True)
    for case in results:
        best = min(r["seconds"][THEM] for r in results if r["method"] == case["method"])
        case["ratio_to_best"] = round(case["seconds"][US] / best, 3)
    if not tiny:
        packages = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft")
        content = {
            "command": "python -m benchmarks.finetune" + " --avx2" * avx2,
            "machine": record.machine(),
            "versions": record.versions(*packages),
            "shape": vars(shape),
            "rounds": rounds,
            "cases": results,
        }
        record.write("finetune_avx2_cpu" if avx2 else "finetune_cpu", content)


def table(results: list[dict[str, Any]]) -> str:
    """The rows that are shown as they come."""
    return "\n".join(
        f"| {r['case']} | {r['seconds'][US]:.3f} | {'>' * r['bound']}{r['seconds'][THEM]:.3f} "
        f"| {r['time_ratio']['median']:.2f} | {r['peak_megabytes']} |"
        for r in results
    )


if __name__ == "__main__":
    tyro.cli(main)
