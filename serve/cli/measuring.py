"""A server under load: requests sent, timed, and summed up under vLLM's names."""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from serve.cli.client import ServerError, Stream, check, connection
from serve.cli.workload import Job

SUMMARIES: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": np.mean,
    "median": np.median,
    "std": np.std,
    "p99": lambda values: np.percentile(values, 99),
}


@dataclass
class Outcome:
    """What became of a request; times in seconds."""

    latency: float = 0.0
    texts: list[float] = field(default_factory=list)  # when each piece of text came, from the start
    input_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def first(self) -> float:
        return self.texts[0] if self.texts else self.latency  # an answer may be without text


async def ask(client: httpx.AsyncClient, url: str, job: Job, extra: dict[str, Any]) -> Outcome:
    """Send one request and read its answer to the end. No failure raises."""
    outcome, stream = Outcome(), Stream()
    kind = "messages" if job.is_chat else "prompt"
    body = {kind: job.prompt, "max_tokens": job.max_tokens, "stream": True, **extra}
    body["stream_options"] = {"include_usage": True}
    path = "chat/completions" if job.is_chat else "completions"
    began = time.perf_counter()
    try:
        async with client.stream("POST", f"{url}/v1/{path}", json=body) as response:
            check(response, await response.aread() if response.is_error else b"")
            async for data in response.aiter_bytes():
                came = time.perf_counter() - began
                outcome.texts += [came] * len(stream.push(data))
        outcome.latency = time.perf_counter() - began
        stream.finish()
        outcome.input_tokens = stream.usage["prompt_tokens"]
        outcome.output_tokens = stream.usage["completion_tokens"]
    except KeyError:
        outcome.error = "the server does not say how many tokens there were (usage)"
    except (httpx.HTTPError, ServerError) as error:
        lost = isinstance(error, httpx.HTTPError)
        outcome.error = f"{type(error).__name__}: {error}".rstrip(": ") if lost else str(error)
    return outcome


async def load(
    url: str,
    jobs: Sequence[Job],
    extra: dict[str, Any],
    concurrency: int | None,
    rate: float,
    seed: int,
    timeout: float,
    done: Callable[[], object] = lambda: None,
) -> tuple[list[Outcome], float]:
    """The outcomes of all jobs, and the seconds they took together.

    concurrency: the most requests at a time. rate: requests a second, as a Poisson process;
    infinite sends each as soon as it may. done: called when a request is over.
    """
    gate = asyncio.Semaphore(concurrency or len(jobs))
    unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    how = connection() | {"timeout": timeout, "limits": unlimited}
    choose = random.Random(seed)
    async with httpx.AsyncClient(**how) as client:

        async def one(job: Job) -> Outcome:
            async with gate:
                outcome = await ask(client, url, job, extra)
            done()
            return outcome

        began = due = time.perf_counter()
        tasks = []
        for job in jobs:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(job)))
            due += choose.expovariate(rate) if rate < float("inf") else 0.0
        outcomes = await asyncio.gather(*tasks)
        return outcomes, time.perf_counter() - began


def metrics(outcomes: Sequence[Outcome], duration: float) -> dict[str, Any]:
    """vLLM's metrics under vLLM's names, of the requests that succeeded; times in milliseconds.

    ttft: until the first text. tpot: of each token after the first. itl: between two pieces of
    text, which may hold several tokens. e2el: the whole request.
    """
    good = [outcome for outcome in outcomes if not outcome.error]
    inputs = sum(outcome.input_tokens for outcome in good)
    outputs = sum(outcome.output_tokens for outcome in good)
    found = {
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        "duration": duration,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(good) / duration,
        "output_throughput": outputs / duration,
        "total_token_throughput": (inputs + outputs) / duration,
    }
    times = {
        "ttft": [one.first for one in good],
        "tpot": [
            (one.latency - one.first) / (one.output_tokens - 1)
            for one in good
            if one.output_tokens > 1
        ],
        "itl": [gap for one in good for gap in np.diff(one.texts)],
        "e2el": [one.latency for one in good],
    }
    for name, seconds in times.items():
        values = np.asarray(seconds) * 1000
        for kind, compute in SUMMARIES.items():
            found[f"{kind}_{name}_ms"] = float(compute(values)) if len(values) else None
    return found


def report(found: dict[str, Any]) -> None:
    """Print the metrics as a table, and every error with how often it came."""
    for name, value in found.items():
        if name != "errors":
            print(f"{name:24} {value:.2f}" if isinstance(value, float) else f"{name:24} {value}")
    for error, count in found["errors"].items():
        print(f"{count} x {error}", file=sys.stderr)
