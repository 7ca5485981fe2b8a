"""Load a server and measure it: python -m serve.bench --url http://localhost:8000."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from qwen_jax.cli import run

GROUPS = {  # of --help
    "load": "requests concurrency rate warmup timeout",
    "prompt and answer": """dataset file input_length output_length spread temperature ignore_eos
        seed""",
}


def main(
    url: str,
    model: str | None = None,
    dataset: Literal["random", "sharegpt", "jsonl"] = "random",
    file: Path | None = None,
    requests: int = 200,
    concurrency: int | None = None,
    rate: float = float("inf"),
    input_length: int = 128,
    output_length: int | None = None,
    spread: float = 0.0,
    temperature: float = 0.0,
    ignore_eos: bool = True,
    warmup: int = 4,
    seed: int = 0,
    timeout: float = 600.0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Load an OpenAI-compatible server and measure it; the metrics and their names are vLLM's.

    Args:
        url: Address of the server, http://localhost:8000; its key is read from QWEN_API_KEY.
        model: Name of one of the server's models; by default, its first.
        dataset: Prompts: random ids, ShareGPT's conversations, or lines of JSON.
        file: File of ShareGPT or JSON lines.
        requests: Number of requests to send and measure.
        concurrency: Most requests at a time; by default there is no limit.
        rate: Requests a second, arriving at random as a Poisson process; by default, at once.
        input_length: Tokens of a random prompt.
        output_length: Tokens of an answer; by default 128, or what the file says.
        spread: Share by which random lengths vary, up and down.
        temperature: Temperature of sampling; 0 takes the likeliest tokens.
        ignore_eos: Full length for every answer, so that servers are asked for the same work.
        warmup: Requests that are sent before and not measured.
        seed: Seed of prompts, their order, and arrivals.
        timeout: Seconds without a sign of the server after which a request has failed.
        out: JSON file for everything that is found, and how.
    """
    import httpx

    from qwen_jax.program import limits, progress
    from serve.cli import measuring, workload
    from serve.cli.client import connection, fetch, models

    if concurrency is None and rate == float("inf"):
        raise ValueError("give --concurrency, --rate, or both")
    limits.expect(
        requests=requests,
        concurrency=concurrency,
        rate=rate,
        input_length=input_length,
        output_length=output_length,
        spread=spread,
        temperature=temperature,
        warmup=warmup,
        seed=seed,
        timeout=timeout,
        file=file,
        url=url,
    )
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ValueError(f"--out is {out}, wanted a file in a folder that is there")
    if (file is None) != (dataset == "random"):
        raise ValueError("--file belongs to the datasets sharegpt and jsonl, which need it")
    url = url.rstrip("/")
    count = requests + warmup
    with httpx.Client(**connection()) as client:
        names = models(client, url)
        if model is not None and model not in names:
            raise ValueError(f"the server has no model {model!r}, it has {', '.join(names)}")
        model = model or names[0]

        def measure(text: str) -> int:
            asked = {"model": model, "prompt": text}
            return int(fetch(client, "POST", f"{url}/tokenize", json=asked)["count"])

        if file is None:
            jobs = workload.random_jobs(count, seed, input_length, output_length or 128, spread)
        elif dataset == "sharegpt":
            jobs = workload.sharegpt_jobs(file, count, seed, output_length, measure)
        else:
            jobs = workload.jsonl_jobs(file, count, seed, output_length)
    extra = {"model": model, "temperature": temperature, "ignore_eos": ignore_eos}
    how = (extra, concurrency, rate, seed, timeout)
    for what, part in (("warming up", jobs[requests:]), ("measuring", jobs[:requests])):
        with progress.working(what, len(part), "requests") as task:
            load = measuring.load(url, part, *how, done=task.advance)
            outcomes, duration = asyncio.run(load)
    found = measuring.metrics(outcomes, duration)
    measuring.report(found)
    if out is not None:
        asked = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "url": url,
            "model_id": model,
            "dataset": dataset,
            "num_prompts": requests,
            "max_concurrency": concurrency,
            "request_rate": "inf" if rate == float("inf") else rate,
            "seed": seed,
        }
        from qwen_jax.files import atomic

        atomic.write_text(out, json.dumps(asked | found, indent=1) + "\n")
    return found


def command(arguments: Sequence[str] | None = None, prog: str = "python -m serve.bench") -> None:
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard

    if reading.read(main, prog, arguments, GROUPS, extra="serve")["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run(command)
