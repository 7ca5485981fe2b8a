"""Prefill and decode on a CPU beside transformers and llama.cpp, on the same weights.

    python -m benchmarks.speed [--avx2] [--prompt 128] [--rounds 5] [--tokens 48] [--folder /tmp]

Every contestant is loaded once, must predict what the others predict, and then takes its turn in
each round, so that what else the machine does meets all alike; a ratio compares two turns of one
round. Writes benchmarks/results/speed_cpu.json and speed_cpu.md, a table; with --avx2, as
on a processor without AVX-512 and bfloat16, speed_avx2_cpu; with another --prompt, speed_512_cpu.
Needs 16 GB of memory and 5 GB of disk; --tiny, a test of this file, needs neither.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.support import record
from benchmarks.support.checkpoints import (
    HALF_BILLION,
    TINY,
    Shape,
    write_gguf,
    write_hf,
    write_native,
)
from benchmarks.support.race import AVX2, PAUSE, Runner, rates, ratio

PROMPT = 128  # tokens, where nobody says
CHECKED = 32  # tokens compared before anything is timed
TOLERANCE = 1e-4  # of float32 logits, relative to the largest
AGREEMENT = {"int4": 0.03, "Q4_0": 0.03}  # of likeliest tokens, with noise for weights; else 0.75
FIELDS = {  # model type: contestants, of which pairs become ratios
    "qwen2": (
        ("qwen_jax", "float32"),
        ("transformers", "float32"),
        ("qwen_jax", "bfloat16"),
        ("transformers", "bfloat16"),
        ("qwen_jax", "int8"),
        ("qwen_jax", "int4"),
        ("llama.cpp", "F16"),
        ("llama.cpp", "Q8_0"),
        ("llama.cpp", "Q4_0"),
    ),
    "qwen": (  # the original, which transformers no longer runs
        ("qwen_jax", "float32"),
        ("qwen_jax", "bfloat16"),
        ("qwen_jax", "int8"),
        ("qwen_jax", "int4"),
        ("llama.cpp", "F16"),
        ("llama.cpp", "Q8_0"),
        ("llama.cpp", "Q4_0"),
    ),
}
TOO_SLOW = ("transformers", "bfloat16")  # with AVX2: minutes for a prompt
GGUF = ("F16", "Q8_0", "Q4_0")
QUANTISED = ("int8", "int4")
PAIRS = (
    ("qwen_jax float32", "transformers float32"),
    ("qwen_jax bfloat16", "transformers bfloat16"),
    ("qwen_jax bfloat16", "transformers float32"),
    ("qwen_jax bfloat16", "llama.cpp F16"),
    ("qwen_jax bfloat16", "llama.cpp Q8_0"),
    ("qwen_jax int8", "qwen_jax bfloat16"),
    ("qwen_jax int4", "qwen_jax bfloat16"),
    ("qwen_jax int4", "qwen_jax int8"),
    ("qwen_jax int8", "transformers bfloat16"),
    ("qwen_jax int4", "transformers bfloat16"),
    ("qwen_jax int8", "llama.cpp Q8_0"),
    ("qwen_jax int4", "llama.cpp Q4_0"),
)
SAMPLED = "qwen_jax bfloat16"
SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {},
    "top_p 0.8": {"temperature": 1.0, "top_p": 0.8},
    "top_k 20, top_p 0.8, repetition_penalty 1.05": {
        "temperature": 1.0,
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.05,
    },
}
BYTES = {"float32": 4, "bfloat16": 2, "F16": 2, "Q8_0": 34 / 32, "Q4_0": 18 / 32}  # of a weight
BYTES |= {"int8": 1, "int4": 0.5 + 2 / 128}
Field = tuple[tuple[str, str], ...]  # name and precision of each
Runners = dict[str, Runner]


def start(
    stack: contextlib.ExitStack, root: Path, shape: Shape, model_type: str, field: Field
) -> Runners:
    """Write the weights in everybody's format and load them, one contestant at a time."""
    log(f"{model_type}: writing checkpoints")
    hf = write_hf(root / model_type, shape, model_type)
    kinds = {dtype for _, dtype in field}
    at = lambda kind: root / f"{model_type}-{kind}"
    models = {
        "qwen_jax": write_native(hf, at("native")),
        "transformers": hf,
        **{kind: write_native(hf, at(kind), kind) for kind in QUANTISED if kind in kinds},
        **{kind: write_gguf(hf, at(f"{kind}.gguf"), kind) for kind in GGUF if kind in kinds},
    }
    runners: Runners = {}
    for name, dtype in field:
        log(f"{model_type}: loading {name} {dtype}")
        runner = Runner(name, models.get(dtype) or models[name], dtype)
        runners[runner.label] = stack.enter_context(runner)
        runner.ready()
    return runners


def check(runners: Runners, shape: Shape, prompt: list[int], tokens: int, root: Path) -> Any:
    """Whether all compute the same; RuntimeError if not. It also compiles what will be timed."""
    log("checking")
    first, *rest = runners.values()
    text = prompt + np.random.default_rng(1).integers(0, shape.vocab, CHECKED).tolist()
    expected, answer = first.ask("follow", ids=text, start=len(prompt)), None
    report: dict[str, Any] = {"reference": first.label, "agreement": {}}
    for runner in (first, *rest):
        given = runner.ask("generate", ids=prompt, count=tokens)["tokens"]
        answer = answer or given
        same = [a == b for a, b in zip(given, answer, strict=True)]
        alike = np.mean(np.equal(runner.ask("follow", ids=text, start=len(prompt)), expected))
        report["agreement"][runner.label] = {
            "likeliest tokens": round(float(alike), 3),
            "leading greedy tokens": same.index(False) if False in same else len(same),
        }
        if alike < AGREEMENT.get(runner.label.split()[-1], 0.75):
            raise RuntimeError(f"{runner.label} agrees with {first.label} on {alike:.0%} of tokens")
    if (rival := runners.get("transformers float32")) is not None:
        logits = []
        for runner in (first, rival):
            out = root / "logits.npy"
            runner.ask("logits", ids=text, start=len(prompt), out=str(out))
            logits.append(np.load(out))
        far = float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max())
        report["logits_relative_difference"] = far
        leading = report["agreement"][rival.label]["leading greedy tokens"]
        if far > TOLERANCE or leading < CHECKED:
            raise RuntimeError(f"{rival.label}: logits {far:.1e} apart, {leading} tokens alike")
    return report


def ceilings(runners: Runners, tiny: bool, avx2: bool) -> dict[str, float]:
    """What the machine gives at best: GB/s of reading, GFLOP/s of matrix products."""
    size = 256 if tiny else 2048
    torch, jax = runners["transformers float32"], runners["qwen_jax bfloat16"]
    found = {"read": torch.ask("read", bytes=1 << (20 if tiny else 30)) / 1e9}
    for dtype in ("float32", "bfloat16")[: 1 if avx2 else 2]:  # torch takes minutes for the other
        for name, runner in (("torch", torch), ("jax", jax)):
            found[f"{dtype} product, {name}"] = runner.ask("gemm", size=size, dtype=dtype) / 1e9
    return {name: round(value, 1) for name, value in found.items()}


def race(
    runners: Runners, ways: list[str], prompt: list[int], tokens: int, rounds: int
) -> dict[str, Any]:
    """All contestants, greedy, and ours in some ways of sampling; every other round backwards."""
    turns: list[tuple[str, str, dict[str, float]]] = [(label, label, {}) for label in runners]
    turns += [(SAMPLED, f"sampling: {way}", SAMPLINGS[way]) for way in ways]
    for label, _, sampling in turns[len(runners) :]:
        runners[label].ask("generate", ids=prompt, count=tokens, **sampling)
    raw: dict[str, list[dict[str, float]]] = {title: [] for _, title, _ in turns}
    for number in range(rounds):
        log(f"round {number + 1} of {rounds}, load {record.load_average()}")
        for label, title, sampling in turns if number % 2 == 0 else reversed(turns):
            time.sleep(PAUSE)
            runner = runners[label]
            answer = runner.ask("generate", ids=prompt, count=tokens, **sampling)
            numbers = rates(answer, len(prompt)) | {
                "seconds": answer["last"],
                "cores": runner.busy / answer["last"],  # below all of them: others were running
                "idle": runner.idle,  # core seconds between its turns
            }
            raw[title].append({name: round(value, 3) for name, value in numbers.items()})
    return raw


def summary(raw: dict[str, Any], shape: Shape, read: float) -> dict[str, Any]:
    """Medians of every turn, and medians of ratios of each pair that ran."""
    matrices = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.mlp)
    weights = matrices + shape.vocab * shape.width  # those every token reads
    medians: dict[str, Any] = {}
    for title, rounds in raw.items():
        column = {name: statistics.median(turn[name] for turn in rounds) for name in rounds[0]}
        width = BYTES[(SAMPLED if title.startswith("sampling") else title).split()[-1]]
        column["read"] = column["decode"] * weights * width / 1e9 / read
        medians[title] = {name: round(value, 2) for name, value in column.items()}
    ratios = {}
    others = [(f"sampling: {name}", "sampling: greedy") for name in SAMPLINGS if name != "greedy"]
    for ours, theirs in (*PAIRS, *others):
        if ours in raw and theirs in raw:
            ratios[f"{ours} / {theirs}"] = {
                what: ratio([t[what] for t in raw[ours]], [t[what] for t in raw[theirs]])
                for what in ("decode", "prefill")
            }
    return {"medians": medians, "ratios": ratios}


def table(results: dict[str, Any]) -> str:
    """The summaries as two Markdown tables."""
    lines = ["| | decode tokens/s | prefill tokens/s | of read bandwidth |", "|---|--:|--:|--:|"]
    ratios = ["| | decode | prefill |", "|---|--:|--:|"]
    for model_type, result in results.items():
        for title, row in result["medians"].items():
            numbers = f"{row['decode']:.1f} | {row['prefill']:.0f} | {row['read']:.0%}"
            lines.append(f"| {model_type}, {title} | {numbers} |")
        for title, row in result["ratios"].items():
            numbers = f"{row['decode']['median']:.2f} | {row['prefill']['median']:.2f}"
            ratios.append(f"| {model_type}, {title} | {numbers} |")
    return "\n".join([*lines, "", *ratios]) + "\n"


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def measure(
    avx2: bool = False,
    tiny: bool = False,
    prompt: int = PROMPT,
    rounds: int = 5,
    tokens: int = 48,
    folder: Path | None = None,
) -> None:
    """Race the contestants.

    Args:
        avx2: Nobody sees more of the processor than AVX2.
        tiny: A small network and no file written: does everything still run?
        prompt: Tokens of the prompt; with this or --avx2, the original's architecture stays away.
        rounds: Turns of each contestant.
        tokens: Length of an answer.
        folder: Where to put checkpoints for the time being; default, the system's for such files.
    """
    if not CHECKED <= tokens <= prompt:
        raise ValueError(f"got --tokens {tokens}, wanted {CHECKED} to {prompt}, as --prompt")
    if avx2:
        os.environ.update(AVX2)
    shape = TINY if tiny else HALF_BILLION
    ids = np.random.default_rng(2).integers(0, shape.vocab, prompt).tolist()
    result: dict[str, Any] = {
        "machine": record.machine() | {"load_before": record.load_average()},
        "versions": record.versions(
            *("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "xllamacpp", "gguf")
        ),
        "shape": vars(shape) | {"prompt": prompt, "tokens": tokens},
        "unit": "tokens/s; cores: busy on average; idle: core seconds between turns",
    }
    results: dict[str, Any] = {}
    special = avx2 or prompt != PROMPT
    for model_type, field in list(FIELDS.items())[: 1 if special else None]:
        field = tuple(one for one in field if not (avx2 and one == TOO_SLOW))
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            runners = start(stack, root, shape, model_type, field)
            checks = check(runners, shape, ids, tokens, root)
            if "ceilings" not in result:
                result["ceilings"] = ceilings(runners, tiny, avx2)
                result["llama_cpp_build"] = runners["llama.cpp Q8_0"].ask("build")
            ways = list(SAMPLINGS) if model_type == "qwen2" and not special else []
            raw = race(runners, ways, ids, tokens, rounds)
        results[model_type] = summary(raw, shape, result["ceilings"]["read"])
        results[model_type] |= {"checks": checks, "rounds": raw}
    result["machine"]["load_after"] = record.load_average()
    text = table(results)
    print(text)
    if not tiny:
        kinds = ["avx2"] * avx2 + [str(prompt)] * (prompt != PROMPT)
        record.write("_".join(["speed", *kinds, "cpu"]), result | {"models": results}, text)


if __name__ == "__main__":
    tyro.cli(measure)
