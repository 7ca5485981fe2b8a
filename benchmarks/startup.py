"""Seconds from the start of a process to its first token: ours, transformers' and llama.cpp's.

    python -m benchmarks.startup [--tiny] [--repeats 5] [--folder /tmp]
    python -m benchmarks.startup --seven-billion TOKENIZER [--repeats 3] [--folder /tmp]

Each start is a process of its own that marks the time after every stage; the contestants take
turns. Ours does what `python -m qwen_jax` does, but for arguments and text. "cached" finds the
programs on the disk, as every start after the first does; the others find an empty folder.
Weights come from the page cache; llama.cpp maps its file. Writes startup_cpu.json and .md
in benchmarks/results. The other form starts ours alone with 7 billion random weights, which take
16 GB of the folder and of memory, beside a plain read of the same files: startup_7b_cpu.json.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROMPT, ANSWER = 32, 16  # tokens
STAGES = {
    "import": "the interpreter and the libraries",
    "load": "the weights",
    "compile": "what the first prompt takes longer than the second",
    "run": "the prompt",
}


def qwen_jax(model: str, mark: Callable[..., None]) -> None:
    """Our stages. From here on, imports are late: they are what is timed."""
    from qwen_jax import model_folder
    from qwen_jax.program import compiled, imports

    compiled.keep()
    compiled.keep_executables()
    model_folder.begin_reading(model)
    with imports.of_jax():
        import jax

        from qwen_jax import Sampling, load
        from qwen_jax.decoding import ahead
        from qwen_jax.decoding.completion import stream_completions

    mark("import")
    ids = list(range(1, PROMPT + 1))
    begin = lambda shapes: ahead.prepare(shapes, ids, ANSWER)
    params = jax.block_until_ready(load(model, before_reading=begin))
    mark("load")
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    for stage in ("cold", "warm"):
        answers = stream_completions(params, [ids], sampling, max_new_tokens=ANSWER)
        next(answers)
        mark(f"{stage} first")
        for _ in answers:
            pass
        mark(f"{stage} all")


def transformers(model: str, mark: Callable[..., None]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.support.contestants import Streamer

    mark("import")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    mark("load")
    ids = torch.arange(1, PROMPT + 1)[None]
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for stage in ("cold", "warm"):
        # the first mark stays
        streamer = Streamer(functools.partial(mark, f"{stage} first"))
        mask = torch.ones_like(ids)
        network.generate(ids, attention_mask=mask, max_new_tokens=ANSWER, streamer=streamer, **how)
        mark(f"{stage} all")


def llama_cpp(model: str, mark: Callable[..., None]) -> None:
    import xllamacpp  # noqa: F401

    from benchmarks.support.contestants import LlamaCpp

    mark("import")
    server = LlamaCpp(model, "F16")
    mark("load")
    for stage in ("cold", "warm"):
        began = time.time()
        answer = server.generate(list(range(1, PROMPT + 1)), ANSWER)
        mark(f"{stage} first", began + answer["first"])
        mark(f"{stage} all", began + answer["last"])


def jax(model: str, mark: Callable[..., None]) -> None:
    """JAX alone: what a program that uses it cannot go below."""
    import jax

    jax.block_until_ready(jax.numpy.zeros(1))
    mark("import")


CONTESTANTS = {
    "qwen_jax": qwen_jax,
    "transformers": transformers,
    "llama.cpp": llama_cpp,
    "jax": jax,
}


def be_started(name: str, model: str, began: str) -> None:
    """In a process of its own: the stages, and when each was done."""
    marks: dict[str, float] = {}

    def mark(stage: str, at: float | None = None) -> None:
        marks.setdefault(stage, (at or time.time()) - float(began))

    CONTESTANTS[name](model, mark)
    print(json.dumps(marks))


def start(name: str, model: Path, cache: Path) -> dict[str, float]:
    """Start a process, and the seconds its stages took; cache: where programs are kept."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TRANSFORMERS_VERBOSITY": "error"}
    for setting in ("JAX_COMPILATION_CACHE_DIR", "QWEN_JAX_PROGRAMS"):
        environment.pop(setting, None)
    environment["XDG_CACHE_HOME"] = str(cache)
    command = [sys.executable, "-m", "benchmarks.startup", "start", name, str(model)]
    run = subprocess.run(
        [*command, str(time.time())],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"{name} did not start:\n{run.stderr[-2000:]}")
    at = json.loads(run.stdout.splitlines()[-1])
    if "load" not in at:
        return at
    again = at["warm first"] - at["cold all"]
    return {
        "first token": at["cold first"],
        "import": at["import"],
        "load": at["load"] - at["import"],
        "compile": at["cold first"] - at["load"] - again,
        "run": again,
        f"all {ANSWER} tokens": at["cold all"],
    }


def contestants(root: Path, tiny: bool) -> dict[str, tuple[str, Path, Path | None]]:
    """What is started: whose, which model, and where programs stay; None: they do not."""
    from benchmarks.support.checkpoints import (
        HALF_BILLION,
        TINY,
        write_gguf,
        write_hf,
        write_native,
    )
    from qwen_jax.bundled import CHECKPOINT

    shape, size = (TINY, "tiny") if tiny else (HALF_BILLION, "0.5B bfloat16")
    hf = write_hf(root / "hf", shape, "qwen2")
    native, demo = write_native(hf, root / "native"), write_native(CHECKPOINT, root / "demo")
    cache = root / "cache"
    return {
        "qwen_jax, demo": ("qwen_jax", demo, None),
        "qwen_jax, demo, cached": ("qwen_jax", demo, cache),
        f"qwen_jax, {size}": ("qwen_jax", native, None),
        f"qwen_jax, {size}, cached": ("qwen_jax", native, cache),
        f"transformers, {size}": ("transformers", hf, None),
        f"llama.cpp, {size.replace('bfloat16', 'F16')}": (
            "llama.cpp",
            write_gguf(hf, root / "f16.gguf", "F16"),
            None,
        ),
        "import jax": ("jax", root, None),
    }


def table(medians: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(medians.values())))
    lines = ["| seconds | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for label, row in medians.items():
        cells = (f"{row[column]:.2f}" if column in row else "" for column in columns)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def start_large(tokenizer: Path, repeats: int, folder: Path | None) -> None:
    """The other form; see above."""
    from benchmarks.support import record, seven_billion, tables

    with tempfile.TemporaryDirectory(dir=folder) as root:
        os.environ |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": f"{root}/cache"}
        made = seven_billion.write(Path(root) / "checkpoint", tokenizer)
        before = record.load_average()
        found = seven_billion.measured(made, repeats)
    result = {
        "unit": "seconds",
        "machine": record.machine() | {"load_before": before},
        "versions": record.versions("jax", "jaxlib", "flax"),
        "medians": {kind: statistics.median(seconds) for kind, seconds in found.items()},
        "starts": found,
    }
    record.write("startup_7b_cpu", result)
    print(tables.beyond_reading(result))


def measure(
    tiny: bool = False,
    repeats: int = 5,
    folder: Path | None = None,
    seven_billion: Path | None = None,
) -> None:
    """Start every contestant several times.

    Args:
        tiny: A small network and no file written: does everything still run?
        seven_billion: Ours alone, with so many random weights and this converted Qwen2's tokenizer.
        repeats: Starts of each contestant, after one that is not counted.
        folder: Where to put checkpoints for the time being; default, the system's for such files.
    """
    from benchmarks.support import record

    if seven_billion is not None:
        return start_large(seven_billion, repeats, folder)
    before = record.load_average()
    with tempfile.TemporaryDirectory(dir=folder) as root:
        started = contestants(Path(root), tiny)
        raw: dict[str, list[dict[str, float]]] = {label: [] for label in started}
        for number in range(repeats + 1):  # the first fills caches
            for label, (name, model, cache) in started.items():
                with tempfile.TemporaryDirectory(dir=folder) as empty:
                    seconds = start(name, model, cache or Path(empty))
                if number:
                    raw[label].append({stage: round(x, 3) for stage, x in seconds.items()})
            print(f"start {number} of {repeats} done", file=sys.stderr, flush=True)
    medians = {
        label: {stage: round(statistics.median(r[stage] for r in rows), 2) for stage in rows[0]}
        for label, rows in raw.items()
    }
    text = table(medians)
    print(text)
    if not tiny:
        after = record.load_average()
        record.write(
            "startup_cpu",
            {
                "unit": "seconds",
                "stages": STAGES,
                "prompt_tokens": PROMPT,
                "machine": record.machine() | {"load_before": before, "load_after": after},
                "versions": record.versions(
                    "jax", "jaxlib", "flax", "torch", "transformers", "xllamacpp"
                ),
                "medians": medians,
                "starts": raw,
            },
            text,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["start"]:
        be_started(*sys.argv[2:])
    else:
        import tyro

        tyro.cli(measure)
