"""A real server under load: same answers, nothing compiled, nothing left behind, no memory lost.

    python -m benchmarks.serve_load [--requests 2000] [--concurrency 16]

First 200 streaming requests of mixed kinds and lengths at once, each beside itself alone. Then
many more, with samples of the server's memory between. Then the 200 again, all at once, by another
server, with adapters, drafts and memory for so few tokens that answers give theirs up. Writes
benchmarks/results/serve_load.json.
"""

import asyncio
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import psutil
import tyro

from benchmarks.support import record
from benchmarks.support.server import Server, started
from qwen_jax import load, memory
from qwen_jax.adapters import attach, peft
from qwen_jax.adapters.peft_config import LoraConfig

WORDS = "qwen jax server tokens answers a small model 你好 and the weather is fine today".split()
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["age"],
    "additionalProperties": False,
}
OPTIONS = ("--model", "demo", "--slots", "16", "--max-length", "1024")
COUNTED = ("preemptions", "draft_tokens", "accepted_tokens", "compilations")
SAMPLES = 20  # of memory, over the long run
SCARCE = 1088  # tokens of all answers together, of which each may take 1024
ADAPTERS = ("left", "right")
TOLERATED = 8e6  # bytes by which memory may grow over the second half of the long run


def request(number: int, models: Sequence[str] = ("demo",)) -> tuple[str, dict[str, Any]]:
    """Path and body, the same for the same number."""
    chance = random.Random(number)
    text = " ".join(chance.choices(WORDS, k=chance.choice([1, 6, 30, 120])))
    body = {
        "model": models[number % len(models)],
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": number,
        "max_tokens": chance.choice([1, 16, 64, 160]),
        "temperature": chance.choice([0, 0.8, 1.5]),
        "top_p": chance.choice([1, 0.8]),
        "repetition_penalty": chance.choice([1, 1.2]),
        "ignore_eos": chance.random() < 0.3,
    }
    match number % 10:
        case 3:
            schema = {"name": "person", "schema": SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
            body["ignore_eos"] = False
        case 4:
            body["stop"] = ["the", "。"]
        case 5:
            body["n"] = 2
    if number % 3 == 0:
        return "/v1/completions", body | {"prompt": text, "logprobs": 2}
    return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}


async def answer(
    client: httpx.AsyncClient, number: int, models: Sequence[str]
) -> tuple[dict[int, Any], int]:
    """Of every choice its text, scores and end; and the tokens of all."""
    path, body = request(number, models)
    choices: dict[int, Any] = {}
    tokens, last = 0, ""
    async with client.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"request {number}: {await response.aread()!r}")
        async for line in response.aiter_lines():
            if not line:
                continue
            last = line.removeprefix("data: ")
            if last == "[DONE]":
                break
            chunk = json.loads(last)
            if "error" in chunk:
                raise RuntimeError(f"request {number}: {chunk['error']}")
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            for piece in chunk["choices"]:
                text, scores, _ = choices.get(piece["index"], ("", (), None))
                text += piece.get("text") or piece.get("delta", {}).get("content") or ""
                if piece["logprobs"]:
                    scores += tuple(piece["logprobs"]["token_logprobs"])
                choices[piece["index"]] = text, scores, piece["finish_reason"]
    ends = {end for *_, end in choices.values()}
    if last != "[DONE]" or not ends <= {"stop", "length"}:
        raise RuntimeError(f"request {number} did not end: {ends}, {last[:200]}")
    return choices, tokens


async def answers(
    url: str, numbers: range, concurrency: int, models: Sequence[str] = ("demo",)
) -> list[tuple[dict[int, Any], int]]:
    """To requests that are sent so many at a time."""
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def one(number: int) -> tuple[dict[int, Any], int]:
            async with gate:
                return await answer(client, number, models)

        return await asyncio.gather(*map(one, numbers))


def compare(
    server: Server, count: int, concurrency: int, models: Sequence[str] = ("demo",)
) -> dict[str, Any]:
    """Every request among others and alone."""
    began = time.perf_counter()
    together = asyncio.run(answers(server.url, range(count), concurrency, models))
    seconds = time.perf_counter() - began
    server.settled()
    alone = asyncio.run(answers(server.url, range(count), 1, models))
    return {
        "requests": count,
        "concurrency": concurrency,
        "finished": len(together),
        "distinct": len({str(choices) for choices, _ in together}),
        "different_alone": sum(a != b for a, b in zip(together, alone, strict=True)),
        "tokens": sum(tokens for _, tokens in together),
        "seconds": round(seconds, 1),
    }


def endure(server: Server, count: int, concurrency: int) -> dict[str, Any]:
    """Many requests, and the server's resident memory after each part of them."""
    part = count // SAMPLES
    megabytes = [_resident(server)]
    for start in range(0, part * SAMPLES, part):
        asyncio.run(answers(server.url, range(start, start + part), concurrency))
        server.settled()
        megabytes.append(_resident(server))
        print(f"{start + part} requests: {megabytes[-1]} MB", flush=True)
    half = megabytes[SAMPLES // 2 :]
    growth = max(half) - half[0]
    return {
        "requests": part * SAMPLES,
        "concurrency": concurrency,
        "resident_megabytes": megabytes,
        "growth_of_second_half_megabytes": round(growth, 1),
        "flat": growth * 1e6 <= TOLERATED,
    }


def crowded(count: int) -> dict[str, Any]:
    """All requests at once, of three models, where memory is short and tokens are drafted."""
    params = load("demo")
    token = memory.cache(params.config, memory.dtype_of_cache(params))
    options = [*OPTIONS, "--cache-memory", str(token * SCARCE), "--draft-tokens", "4"]
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(ADAPTERS):
            chance = np.random.default_rng(number)
            adapter = attach.fresh(
                params, LoraConfig(8, 16.0, "all-linear"), jax.random.key(number)
            )
            deltas = {
                module: (a, chance.normal(0, 0.02, b.shape).astype(np.float32))
                for module, (a, b) in adapter.deltas.items()
            }
            peft.write(dataclasses.replace(adapter, deltas=deltas), Path(folder) / name)
            options += ["--adapter", f"{name}={Path(folder) / name}"]
        with started(*options) as server:
            same = compare(server, count, count, ("demo", *ADAPTERS))
            after = server.settled()
    counts = {name: after[f"qwen_{name}"] for name in COUNTED}
    return {"options": " ".join(options).replace(folder, "FOLDER"), **same, **counts}


def _resident(server: Server) -> float:
    return round(psutil.Process(server.process.pid).memory_info().rss / 1e6, 1)


def measure(requests: int = 2000, concurrency: int = 16, mixed: int = 200) -> bool:
    """Load a server of the bundled model; false where it broke a promise.

    Args:
        requests: Of the long run.
        concurrency: Requests at a time.
        mixed: Requests that are compared with themselves alone.
    """
    before = record.load_average()
    with started(*OPTIONS) as server:
        warm = server.metrics()
        same = compare(server, mixed, concurrency)
        long = endure(server, requests, concurrency)
        after = server.settled()
    scarce = crowded(mixed)
    names = ("compilations", "engine_failures_total", "requests_running", "requests_waiting")
    left = {name: after[f"qwen_{name}"] for name in names}
    result = {
        "machine": record.machine() | {"load_average": [before, record.load_average()]},
        "versions": record.versions("jax", "starlette", "uvicorn", "llguidance"),
        "options": " ".join(OPTIONS),
        "answers": same,
        "memory": long,
        "crowded": scarce,
        "afterwards": left,
    }
    print(json.dumps(result, indent=1))
    good = not any(left.values()) and not warm["qwen_compilations"]
    good = good and not same["different_alone"] and long["flat"]
    good = good and not scarce["different_alone"] and not scarce["compilations"]
    if (requests, mixed) == (2000, 200):
        record.write("serve_load", result)
    return good


if __name__ == "__main__":
    sys.exit(0 if tyro.cli(measure) else 1)
