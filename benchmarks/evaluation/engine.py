"""What windows, pages, prompts in company and drafts cost or save on a CPU, each in one run.

    python -m benchmarks.evaluation.engine [--model build/real/native] [--rounds 3]    # make engine

Of a real model (make real): one user of a server whose window is 8192 tokens, beside one of 512;
16 short prompts together, beside one after the other; an answer that repeats its prompt, and one
that does not, with drafts and without. Of the bundled one: how many chats a server answers at once
in the memory of four whole windows, and whether each is as alone. Writes engine_cpu.json in
benchmarks/results.
"""

import asyncio
import contextlib
import io
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tyro

import qwen_jax
from benchmarks.evaluation import real
from benchmarks.serve_load import WORDS
from benchmarks.support import race, record
from benchmarks.support.race import PAUSE, ratio
from benchmarks.support.server import Server, started
from qwen_jax import Sampling, memory
from qwen_jax.conversation import chat_prompt
from serve import bench

USED = 236, 64  # tokens of a window: of a prompt and of an answer
WINDOWS = (512, 8192)
SHORT, COUNT = 24, 16  # tokens of a prompt, prompts
DRAFTED = 160  # tokens of an answer
ASKED = {
    "repeats its prompt": "Repeat this file, word for word:\n\n" + Path(race.__file__).read_text(),
    "does not": "Why do leaves change their colour in autumn? Explain it to a child, at length.",
}
CHATS = 48


def windows(model: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds a token of one user, by the server's window."""
    options = ("--model", str(model), "--slots", "16", "--max-length")
    found: dict[int, list[float]] = {size: [] for size in WINDOWS}
    with contextlib.ExitStack() as stack:
        url = {n: stack.enter_context(started(*options, str(n))).url for n in WINDOWS}
        for number in range(rounds):
            for size in WINDOWS if number % 2 == 0 else reversed(WINDOWS):
                time.sleep(PAUSE)
                with contextlib.redirect_stdout(io.StringIO()):
                    one = bench.main(
                        url[size],
                        requests=3,
                        concurrency=1,
                        input_length=USED[0],
                        output_length=USED[1],
                        warmup=1,
                        seed=number,
                    )
                found[size].append(one["mean_tpot_ms"])
    few, many = (found[size] for size in WINDOWS)
    return {"milliseconds_a_token": found, "8192 / 512": ratio(many, few)}


def short_prompts(params: Any, rounds: int) -> dict[str, Any]:
    """Seconds until 16 prompts have their first token, together and one after the other."""
    draw = np.random.default_rng(0)

    def seconds(together: bool) -> float:
        ids = draw.integers(256, 100_000, (COUNT, SHORT)).tolist()
        time.sleep(PAUSE)
        began = time.perf_counter()
        for batch in [ids] if together else [[one] for one in ids]:
            qwen_jax.generate(params, batch, Sampling(temperature=0), max_new_tokens=1)
        return time.perf_counter() - began

    seconds(True), seconds(False)  # which compiles
    found = [(seconds(False), seconds(True)) for _ in range(rounds)]
    alone, together = zip(*found, strict=True)
    return {"alone": alone, "together": together, "alone / together": ratio(alone, together)}


def drafts(params: Any, rounds: int) -> dict[str, Any]:
    """Tokens a second behind the first, with drafts and without; the tokens are the same."""
    sampling, result = Sampling(0.7, top_k=20, top_p=0.8, ignore_eos=True), {}

    def rate(ids: Sequence[int], draft_tokens: int) -> tuple[float, list[int]]:
        time.sleep(PAUSE)
        tokens: list[int] = []
        marks: list[tuple[float, int]] = []
        for part in qwen_jax.stream(
            params, ids, sampling, max_new_tokens=DRAFTED, seed=0, draft_tokens=draft_tokens
        ):
            tokens += part
            marks.append((time.perf_counter(), len(tokens)))
        (first, few), (last, many) = marks[0], marks[-1]
        return (many - few) / (last - first), tokens

    for kind, text in ASKED.items():
        ids, _ = chat_prompt(params, text)
        found: dict[int, list[float]] = {0: [], 4: []}
        for number in range(-1, rounds):  # the first compiles
            answers = []
            for size in found if number % 2 == 0 else reversed(found):
                speed, tokens = rate(ids, size)
                answers.append(tokens)
                if number >= 0:
                    found[size].append(speed)
            if answers[0] != answers[1]:
                raise RuntimeError(f"drafts changed the answer that {kind}: {answers}")
        result[kind] = {"tokens_a_second": found, "with / without": ratio(found[4], found[0])}
    return result


def chat(number: int) -> dict[str, Any]:
    """A request of about 200 tokens and 250 of answer."""
    chance = random.Random(number)
    text = " ".join(chance.choices(WORDS, k=chance.randint(60, 140)))
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": chance.randint(150, 350),
        "seed": number,
        "ignore_eos": True,
    }


async def answered(server: Server, concurrency: int) -> list[tuple[str, dict[str, int]]]:
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:

        async def one(number: int) -> tuple[str, dict[str, int]]:
            async with gate:
                sent = await client.post("/v1/chat/completions", json=chat(number))
            found = sent.raise_for_status().json()
            return found["choices"][0]["message"]["content"], found["usage"]

        return await asyncio.gather(*map(one, range(CHATS)))


def capacity() -> dict[str, Any]:
    """Chats under way at once in the memory of four whole windows of the bundled model."""
    params = qwen_jax.load("demo")
    token = memory.cache(params.config, memory.dtype_of_cache(params))
    size = 4 * params.config.max_length * token
    options = ("--model", "demo", "--slots", "64", "--cache-memory", str(size))
    with started(*options) as server:
        most = 0.0

        async def watched() -> list[tuple[str, dict[str, int]]]:
            nonlocal most
            asked = asyncio.create_task(answered(server, CHATS))
            while not asked.done():
                now = await asyncio.to_thread(server.metrics)
                most = max(most, now["qwen_requests_running"])
                await asyncio.sleep(0.05)
            return await asked

        together = asyncio.run(watched())
        alone = asyncio.run(answered(server, 1))
        after = server.settled()
    mean = lambda name: round(statistics.mean(usage[name] for _, usage in together))
    return {
        "options": " ".join(options),
        "window": params.config.max_length,
        "chats": CHATS,
        "tokens_of_a_prompt": mean("prompt_tokens"),
        "tokens_of_an_answer": mean("completion_tokens"),
        "at_once": int(most),
        "different_alone": sum(a != b for (a, _), (b, _) in zip(together, alone, strict=True)),
        "preemptions": after["qwen_preemptions"],
        "compilations": after["qwen_compilations"],
    }


def measure(model: Path = real.MODEL, rounds: int = 3) -> None:
    """Measure all four.

    Args:
        model: Folder of a real model.
        rounds: Turns of each.
    """
    before = record.load_average()
    result: dict[str, Any] = {"capacity": capacity()}
    print(result["capacity"], file=sys.stderr, flush=True)
    result["windows"] = windows(model, rounds)
    print(result["windows"], file=sys.stderr, flush=True)
    params = qwen_jax.load(str(model))
    result["short_prompts"] = short_prompts(params, rounds)
    result["drafts"] = drafts(params, rounds)
    print(result["short_prompts"], result["drafts"], sep="\n", file=sys.stderr, flush=True)
    about = {
        "machine": record.machine() | {"load_average": [before, record.load_average()]},
        "versions": record.versions("jax", "jaxlib", "flax", "uvicorn"),
        "model": model.parent.name + "/" + model.name,
    }
    record.write("engine_cpu", about | result)


if __name__ == "__main__":
    tyro.cli(measure)
