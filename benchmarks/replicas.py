"""Replicas of the bundled model that are killed, or told to stop: make replicas.

Two behind Ray Serve (deploy/ray_serve.yaml with a small model on CPUs), and one alone that gets the
signal that Kubernetes sends a pod. Writes benchmarks/results/replicas.json.
"""

import asyncio
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
import yaml

from benchmarks.support import record
from benchmarks.support.server import ROOT, started

PORT = 8231
CACHE = Path.home() / ".cache/qwen_jax/xla"
URL = f"http://127.0.0.1:{PORT}"
ASK = {"model": "demo", "prompt": "Hello", "seed": 3, "ignore_eos": True}
LONG = ASK | {"max_tokens": 300, "stream": True}
MANY = 200  # streams under way at once

Stream = tuple[str, str, int]  # what became of it, its text, and in how many pieces that came


def config() -> dict[str, Any]:
    """The deployment's own file, but for the model, the port and the GPUs."""
    read: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray_serve.yaml").read_text())
    read["http_options"] = {"host": "127.0.0.1", "port": PORT}
    (application,) = read["applications"]
    application["args"] |= {"model": "demo", "slots": MANY // 2, "max_length": 2048}
    (deployment,) = application["deployments"]
    deployment["max_ongoing_requests"] = MANY // 2
    options = deployment["ray_actor_options"]
    options |= {"num_gpus": 0, "num_cpus": 1}
    options["runtime_env"]["env_vars"]["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
    return read


@contextmanager
def running() -> Iterator[subprocess.Popen[bytes]]:
    """`serve run` on a cluster of this machine alone, its replicas warm."""
    how = {"include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = ray.init("local", num_cpus=4, **how)
    environment = os.environ | {"RAY_ADDRESS": cluster.address_info["address"]}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(yaml.safe_dump(config()))
        file.flush()
        command = [str(Path(sys.executable).with_name("serve")), "run", file.name]
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        try:
            wait(lambda: process.poll() is not None or len(answering()) == 2)
            if process.poll() is not None:
                raise RuntimeError("`serve run` ended; what it said is above")
            yield process
        finally:
            process.terminate()
            process.wait(120)
            ray.shutdown()


def wait(met: Callable[[], bool], seconds: float = 900.0) -> float:
    """Seconds until it is met; raises TimeoutError."""
    began = time.monotonic()
    while not met():
        if time.monotonic() > began + seconds:
            raise TimeoutError(f"not met after {seconds} s")
        time.sleep(0.5)
    return round(time.monotonic() - began, 1)


def answering() -> set[str]:
    """The replicas that answer, by when they began; each look reaches any one of them."""
    texts = []
    for _ in range(16):
        try:
            answer = httpx.get(f"{URL}/metrics", timeout=30)
        except httpx.HTTPError:
            continue
        if answer.status_code == 200:
            texts.append(answer.text)
    wanted = "qwen_time_to_first_token_seconds_created"
    return {line for text in texts for line in text.splitlines() if line.startswith(wanted)}


def replicas() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [one for one in children if "ray::ServeReplica" in " ".join(one.cmdline()[:1])]


async def stream(client: httpx.AsyncClient, begun: asyncio.Event) -> Stream:
    """begun: set when the first piece is here."""
    text, pieces, last = "", 0, ""
    try:
        async with client.stream("POST", "/v1/completions", json=LONG) as response:
            if response.status_code != 200:
                return str(response.status_code), "", 0
            async for line in response.aiter_lines():
                last = line.removeprefix("data: ") or last
                if line and last != "[DONE]":
                    text += json.loads(last)["choices"][0]["text"]
                    pieces += 1
                    begun.set()
    except (httpx.HTTPError, LookupError) as error:
        return type(error).__name__, text, pieces
    finally:
        begun.set()
    return ("whole" if last == "[DONE]" else "broken off"), text, pieces


async def streams(
    count: int, meanwhile: Callable[[], object] = lambda: None, url: str = URL
) -> list[Stream]:
    """So many at once; meanwhile: done when all are under way."""
    begun = [asyncio.Event() for _ in range(count)]
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        tasks = [asyncio.create_task(stream(client, event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        await asyncio.to_thread(meanwhile)
        return await asyncio.gather(*tasks)


def ends(found: list[Stream]) -> dict[str, int]:
    return dict(collections.Counter(end for end, *_ in found))


def stopping(process: subprocess.Popen[bytes], url: str = URL) -> dict[str, int]:
    """What becomes of many streams under way when it is told to stop, and of a request after."""
    late: list[str] = []

    def stop() -> None:
        process.terminate()
        time.sleep(2)
        try:
            late.append(str(httpx.post(f"{url}/v1/completions", json=ASK, timeout=60).status_code))
        except httpx.HTTPError as error:
            late.append(type(error).__name__)

    found = ends(asyncio.run(streams(MANY, stop, url)))
    return found | {f"asked after: {late[0]}": 1}


def measure() -> None:
    result: dict[str, Any] = {"versions": record.versions("ray", "jax", "starlette", "uvicorn")}
    with running() as process:
        spread = asyncio.run(streams(MANY))
        result["streams"] = {
            "ends": ends(spread),
            "different texts": len({text for _, text, _ in spread}),
            "fewest pieces": min(pieces for *_, pieces in spread),
        }
        victim, *_ = replicas()
        result["a replica is killed"] = ends(asyncio.run(streams(MANY, victim.kill)))
        result["right after"] = ends(asyncio.run(streams(4)))
        result["seconds until there are two again"] = wait(lambda: len(answering()) == 2)
        result["with two again"] = ends(asyncio.run(streams(8)))
        result["told to end"] = stopping(process)
    slots = str(MANY)
    with started("--model", "demo", "--slots", slots, "--drain-seconds", "300") as server:
        result["a pod told to end"] = stopping(server.process, server.url)
    print(json.dumps(result, indent=1))
    record.write("replicas", result)


if __name__ == "__main__":
    measure()
