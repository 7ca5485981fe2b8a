"""A server under attack: its event loop, memory and files, and what ordinary clients notice.

    python -m benchmarks.attack [--seconds 120]

16 ordinary streams, alone and then beside everything in support/attackers.py at once, from a
process of its own, which takes what time of the processors the others leave: attackers sit at
machines of their own. Writes benchmarks/results/attack.json; false promises end with 1.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import tyro

from benchmarks.support import record
from benchmarks.support.server import ROOT, Server, started

DRAIN = 10  # seconds; two more are the server's own
OPTIONS = ["--model", "demo", "--slots", "24", "--max-length", "1024"]
OPTIONS += ["--drain-seconds", str(DRAIN)]
STREAMS = 16
MEGABYTES, LAG_SECONDS, SLOWER = 200, 0.1, 2.0  # what is promised
_LAG = 'qwen_event_loop_lag_seconds_bucket{le="'


@dataclass
class Watch:
    """What a server's process takes, and whether it answers, looked at twice a second."""

    server: Server
    megabytes: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    health: list[float] = field(default_factory=list)  # seconds until the answer
    unanswered: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        process = psutil.Process(self.server.process.pid)
        while not self.done.wait(0.5):
            self.megabytes.append(round(process.memory_info().rss / 1e6, 1))
            self.files.append(process.num_fds())
            began = time.monotonic()
            try:
                good = httpx.get(f"{self.server.url}/health", timeout=5).status_code == 200
            except httpx.HTTPError:
                good = False
            self.unanswered += not good
            self.health.append(time.monotonic() - began)

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self._thread.join()


async def stream(client: httpx.AsyncClient, number: int) -> tuple[float, str]:
    """An ordinary request: seconds to its first token, and its text."""
    text = f"Tell me about the number {number}."
    body = {"model": "demo", "messages": [{"role": "user", "content": text}], "stream": True}
    body |= {"max_tokens": 48, "seed": number, "temperature": 0.8, "ignore_eos": True}
    began, first, said = time.monotonic(), 0.0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            return float("inf"), f"{answer.status_code}: {(await answer.aread())[:200]!r}"
        async for line in answer.aiter_lines():
            content = line.removeprefix("data: ")
            if not line or content == "[DONE]":
                continue
            for choice in json.loads(content).get("choices", []):
                piece = choice["delta"].get("content") or ""
                first = first or (time.monotonic() - began if piece else 0.0)
                said += piece
    return first or time.monotonic() - began, said


async def ordinary(url: str, seconds: float) -> dict[int, list[tuple[float, str]]]:
    """16 clients, each with its own question again and again."""
    found: dict[int, list[tuple[float, str]]] = {number: [] for number in range(STREAMS)}

    async def ask(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                try:
                    found[number].append(await stream(client, number))
                except httpx.HTTPError as error:
                    found[number].append((float("inf"), repr(error)))

    await asyncio.gather(*map(ask, range(STREAMS)))
    return found


async def single(url: str) -> list[str]:
    """Every question alone."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return [(await stream(client, number))[1] for number in range(STREAMS)]


def lags(before: dict[str, float], after: dict[str, float]) -> dict[str, int]:
    """How often the event loop was late by how much: "0.05" is by more than 0.02."""
    bounds = [name for name in after if name.startswith(_LAG)]
    counts = [after[name] - before.get(name, 0.0) for name in bounds]
    each = zip(bounds, counts, [0.0, *counts], strict=False)
    return {
        name.removeprefix(_LAG)[:-2]: int(count - less)
        for name, count, less in each
        if count > less
    }


def times(found: dict[int, list[tuple[float, str]]], alone: list[str]) -> dict[str, Any]:
    firsts = sorted(first for answers in found.values() for first, _ in answers)
    wrong = [
        text[:200]
        for number, answers in found.items()
        for _, text in answers
        if text != alone[number]
    ]
    return {
        "answers": len(firsts),
        "different_from_single": len(wrong),
        "for_example": wrong[:3],
        "first_token_seconds_median": round(statistics.median(firsts), 4),
        "first_token_seconds_p95": round(firsts[int(0.95 * (len(firsts) - 1))], 4),
    }


def measure(seconds: float = 120.0, but: tuple[str, ...] = ()) -> bool:
    """Attack a server of the bundled model; false where it broke a promise.

    Args:
        seconds: Time of the attack; a quarter of it without one comes before.
        but: Kinds of attack that are left out; nothing is recorded then.
    """
    with started(*OPTIONS) as server:
        alone = asyncio.run(single(server.url))
        calm = times(asyncio.run(ordinary(server.url, seconds / 4)), alone)
        before = server.metrics()
        port = str(urlsplit(server.url).port)
        command = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.support.attackers", port]
        command += [str(seconds + 10), *but]
        with Watch(server) as watch:
            attack = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
            time.sleep(2)
            beside = times(asyncio.run(ordinary(server.url, seconds)), alone)
            after = server.metrics()
        began = time.monotonic()  # SIGTERM, while the attack goes on
        server.process.terminate()
        code = server.process.wait(60)
        ended = time.monotonic() - began
        outcomes = json.loads(attack.communicate(timeout=120)[0])
    result = {
        "machine": record.machine() | {"load_average": record.load_average()},
        "versions": record.versions("jax", "h11", "starlette", "uvicorn", "uvloop"),
        "options": " ".join(OPTIONS),
        "seconds": seconds,
        "without": calm,
        "with": beside,
        "event_loop_lag_seconds": lags(before, after),
        "resident_megabytes": _span(watch.megabytes),
        "file_descriptors": _span(watch.files),
        "health": {
            "asked": len(watch.health),
            "unanswered": watch.unanswered,
            "slowest_seconds": round(max(watch.health), 3),
        },
        "sigterm": {"seconds": round(ended, 2), "exit_code": code},
        "attacks": outcomes,
    }
    result["promises"] = promises = _promises(result)
    print(json.dumps(result, indent=1))
    if seconds >= 120 and not but:
        record.write("attack", result)
    return all(promises.values())


def _span(samples: list[Any]) -> dict[str, Any]:
    return {"start": samples[0], "most": max(samples), "end": samples[-1]}


def _promises(result: dict[str, Any]) -> dict[str, bool]:
    late = [bound for bound in result["event_loop_lag_seconds"] if float(bound) > LAG_SECONDS]
    memory, name = result["resident_megabytes"], "first_token_seconds_median"
    return {
        "lag": not late,
        "memory": memory["most"] - memory["start"] <= MEGABYTES,
        "first_tokens": result["with"][name] < SLOWER * result["without"][name],
        "answers": not result["with"]["different_from_single"],
        "health": not result["health"]["unanswered"],
        "sigterm": result["sigterm"]["exit_code"] == 0 and result["sigterm"]["seconds"] < DRAIN + 5,
    }


if __name__ == "__main__":
    sys.exit(0 if tyro.cli(measure) else 1)
