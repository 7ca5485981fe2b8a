"""Our server beside llama.cpp's: the same weights, the same machine, the same load client.

    python -m benchmarks.serving [--rounds 3] [--concurrency 1 16] [--dtype bfloat16]

Both servers, and ours with a single slot, are up all the time and measured in turns, one
concurrency after the other, every other round backwards. Writes serving_cpu.json in
benchmarks/results. Needs 12 GB of memory and 4 GB of disk.
"""

import base64
import contextlib
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
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
from benchmarks.support.race import PAUSE, ratio
from serve import bench

SLOTS, LENGTH = 16, 512  # requests at once, tokens of each
MODEL_TYPE = "qwen"  # the original
ALONE = "qwen_jax, one slot"  # which one user at a time asks
NUMBERS = ("output_throughput", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_itl_ms")
RIVAL = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, slots, length, threads = sys.argv[1], *map(int, sys.argv[2:])
params.n_parallel, params.n_ctx, params.kv_unified = slots, slots * length, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.port = 0
server = xllamacpp.Server(params)
print("listening on", server.listening_address, file=sys.stderr, flush=True)
sys.stdin.read()
"""


def write_vocabulary(folder: Path, size: int) -> None:
    """Texts for the ids: a server shows what it generates."""
    names = [bytes([id]) for id in range(256)] + [b" %06x" % id for id in range(256, size - 293)]
    lines = [b"%s %d" % (base64.b64encode(name), id) for id, name in enumerate(names)]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")


@contextmanager
def server(command: Sequence[str], log: Path) -> Iterator[str]:
    """The address of a server while it runs; it says on standard error where it listens."""
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors)
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            found = re.search(r"listening on (http://\S+)", log.read_text(errors="replace"))
            if found and _healthy(found[1]):
                yield found[1]
                return
            time.sleep(0.2)
        raise RuntimeError(f"{command[:4]} does not serve:\n{log.read_text()[-2000:]}")
    finally:
        process.kill()
        process.wait()


def _healthy(url: str) -> bool:
    """Ours answers /ready; the other one has /health alone."""
    with contextlib.suppress(httpx.HTTPError):
        ready = httpx.get(f"{url}/ready")
        return (httpx.get(f"{url}/health") if ready.status_code == 404 else ready).is_success
    return False


def measure_one(
    url: str, concurrency: int, output: int, seed: int, tries: int = 3
) -> dict[str, float]:
    """llama.cpp's server now and then closes a connection that it was about to be asked on."""
    time.sleep(PAUSE)
    with contextlib.redirect_stdout(io.StringIO()):
        found = bench.main(
            url,
            requests=max(2, concurrency),
            concurrency=concurrency,
            input_length=128,
            output_length=output,
            warmup=1,
            seed=seed,
        )
    if found["failed"] and tries > 1:
        print(f"{url}: {found['errors']}, once more", file=sys.stderr, flush=True)
        return measure_one(url, concurrency, output, seed, tries - 1)
    if found["failed"]:
        raise RuntimeError(f"{url}: {found['errors']}")
    return {name: round(found[name], 2) for name in NUMBERS}


def summary(raw: dict[str, list[dict[str, float]]], concurrency: Sequence[int]) -> dict[str, Any]:
    median = lambda title, name: statistics.median(turn[name] for turn in raw[title])
    medians = {title: {name: round(median(title, name), 2) for name in NUMBERS} for title in raw}
    column = lambda who, count, name: [turn[name] for turn in raw[f"{who}, {count}"]]
    ratios: dict[str, Any] = {}
    for count in concurrency:
        for name in ("output_throughput", "mean_ttft_ms", "mean_tpot_ms"):
            ours, theirs = (column(who, count, name) for who in ("qwen_jax", "llama.cpp"))
            ratios[f"qwen_jax / llama.cpp, {name} at {count}"] = ratio(ours, theirs)
    if 1 in concurrency:
        name = "output_throughput"
        ours, alone = column("qwen_jax", 1, name), column(ALONE, 1, name)
        ratios[f"qwen_jax / with one slot, {name} at 1"] = ratio(ours, alone)
    least, most = min(concurrency), max(concurrency)
    for who in ("qwen_jax", "llama.cpp"):
        many, few = (column(who, count, "output_throughput") for count in (most, least))
        ratios[f"{who}, output_throughput at {most} / at {least}"] = ratio(many, few)
    return {"medians": medians, "ratios": ratios}


def measure(
    rounds: int = 3,
    concurrency: tuple[int, ...] = (1, 16),
    output: int = 64,
    dtype: str = "bfloat16",
    tiny: bool = False,
    folder: Path | None = None,
) -> None:
    """Measure both servers.

    Args:
        rounds: Turns of each.
        concurrency: Requests at a time, one turn for each number.
        output: Tokens of an answer.
        dtype: Of our parameters; llama.cpp's are F16.
        tiny: A small network and no file written: does everything still run?
        folder: Where to put checkpoints for the time being; default, the system's for such files.
    """
    shape: Shape = TINY if tiny else HALF_BILLION
    cores = len(os.sched_getaffinity(0))
    before = record.load_average()
    raw: dict[str, list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        hf = write_hf(root / "hf", shape, MODEL_TYPE)
        write_vocabulary(hf, shape.vocab)
        native, gguf = write_native(hf, root / "native"), write_gguf(hf, root / "f16.gguf", "F16")
        python = (sys.executable, "-u")
        ours = (*python, "-m", "serve", "--model", str(native), "--port", "0", "--dtype", dtype)
        sizes = lambda slots: ("--slots", str(slots), "--max-length", str(LENGTH))
        numbers = (str(SLOTS), str(LENGTH), str(cores))
        commands = {
            "qwen_jax": ours + sizes(SLOTS),
            ALONE: ours + sizes(1),
            "llama.cpp": (*python, "-c", RIVAL, str(gguf), *numbers),
        }
        urls = {
            name: stack.enter_context(server(command, root / f"{name}.log"))
            for name, command in commands.items()
        }
        turns = [(name, n) for n in concurrency for name in urls if n == 1 or name != ALONE]
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for name, count in turns if number % 2 == 0 else reversed(turns):
                found = measure_one(urls[name], count, output, seed=100 * number + count)
                print(name, count, found, file=sys.stderr, flush=True)
                raw.setdefault(f"{name}, {count}", []).append(found)
    result = summary(raw, concurrency)
    for title, value in result["ratios"].items():
        print(f"{title}: {value['median']:.2f}")
    if not tiny:
        about = {
            "machine": record.machine()
            | {"load_before": before, "load_after": record.load_average()},
            "versions": record.versions("jax", "jaxlib", "flax", "xllamacpp", "uvicorn", "httpx"),
            "shape": vars(shape) | {"model_type": MODEL_TYPE, "dtype": dtype, "rival": "F16"},
            "load": {"input": 128, "output": output, "slots": SLOTS, "length": LENGTH},
        }
        record.write("serving_cpu", about | result | {"rounds": raw})


if __name__ == "__main__":
    tyro.cli(measure)
