"""The server's own schedule over devices that are not there: python -m benchmarks.simulation.

Requests come at random times, of random lengths; the device is a clock (roofline.py) and
says any token. After every turn each page is held by those who should hold it and by nobody else,
and at the end all are free. Writes benchmarks/results/simulation.json.
"""

import argparse
import collections
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.simulation.roofline import MACHINES, OF_BANDWIDTH, OF_SUMS, Clock
from benchmarks.support import record
from benchmarks.support.chips import MODELS
from qwen_jax.config import Config
from serve.engine.operations import Operation, Prefill, Result, Step, Update
from serve.engine.request import Request
from serve.engine.scheduler import Scheduler
from serve.engine.turn import Limits, Turn

REQUESTS = 10_000
PROMPT, ANSWER, WINDOW = 300, 250, 32768  # tokens: means, and the most
COMMON, COMMONS = 200, 20  # tokens with which a prompt begins as others do; how many such there are
CHUNK, TILE, STEP_TOKENS = 1024, 64, 4
SLOTS = (32, 96, 256)
WINDOWS = 4  # that the cache holds in the comparison with slots of whole windows
RATES = {  # requests a second
    ("Qwen-7B", "v6e-8"): 60.0,
    ("Qwen-7B", "8 H200"): 100.0,
    ("Qwen-72B", "v6e-8"): 10.0,
    ("Qwen-72B", "8 H200"): 25.0,
}


@dataclass
class Wait:
    """What a client saw."""

    arrival: float
    tokens: int = 0
    first: float = 0.0
    last: float = 0.0
    finish: str = ""


def lengths(draw: random.Random, mean: float) -> int:
    """Log-normal: half of them below 0.6 of the mean, one in a hundred above five times it."""
    spread = 1.0
    return max(1, min(WINDOW // 2, round(draw.lognormvariate(math.log(mean) - spread / 2, spread))))


class Simulation:
    """Requests that arrive while the schedule runs turns of a device that is a clock."""

    def __init__(self, clock: Clock, limits: Limits, count: int, rate: float | None):
        """rate: requests a second; None: all are there at first."""
        self._clock, self._limits = clock, limits
        self.schedule = Scheduler(limits)
        self._now = 0.0
        draw = random.Random(0)
        commons = [draw.choices(range(100_000), k=COMMON) for _ in range(COMMONS)]
        self.waits: list[Wait] = []
        self._coming: collections.deque[Request] = collections.deque()
        at = 0.0
        for _ in range(count):
            at += draw.expovariate(rate) if rate else 0.0
            own = draw.choices(range(100_000), k=lengths(draw, PROMPT - COMMON))
            self.waits.append(Wait(at))
            prompt = [*draw.choice(commons), *own]
            hear = self._hearer(self.waits[-1])
            self._coming.append(Request(prompt, None, lengths(draw, ANSWER), hear))
        self.running: list[int] = []  # answers in each step
        self.host: list[float] = []  # seconds that a turn of the schedule really took

    def _hearer(self, wait: Wait) -> Any:
        def hear(update: Update) -> None:
            wait.tokens += len(update.tokens)
            wait.last, wait.finish = self._now, update.finish
            wait.first = wait.first or self._now

        return hear

    def run(self) -> None:
        """Turns, one ahead of what the host has read, until all have their answers."""
        ends = 0.0  # of the turn under way
        under_way: Turn | None = None
        arrivals = collections.deque(wait.arrival for wait in self.waits)
        while self._coming or self.schedule.busy or under_way:
            if not self.schedule.busy and under_way is None:
                self._now = max(self._now, arrivals[0])
            while arrivals and arrivals[0] <= self._now:
                arrivals.popleft()
                self.schedule.submit(self._coming.popleft())
            began = time.perf_counter()
            turn = self.schedule.next()
            host = time.perf_counter() - began
            started, seconds = max(self._now, ends), self._seconds(turn)
            if under_way is not None:
                self._now = ends  # the device has ended the turn before
                pairs = zip(under_way.operations, under_way.readers, strict=True)
                results = [answered(operation, readers) for operation, readers in pairs]
                began = time.perf_counter()
                self.schedule.take(under_way, results)
                self.host.append(host + time.perf_counter() - began)
            ends = started + seconds
            under_way = turn if turn.operations else None
            self.schedule.check()

    def _seconds(self, turn: Turn) -> float:
        steps = [op for op in turn.operations if isinstance(op, Step)]
        self.running += [len(step.slots) for step in steps for _ in range(step.count)]
        return self._clock.seconds(turn.operations, self.schedule.tables.tokens)

    def summary(self) -> dict[str, Any]:
        """Rates and waits; raises AssertionError where a request or a page is lost."""
        pages = self.schedule.tables.pages
        assert pages.available == pages.count, "a page is lost"
        assert all(wait.finish == "length" for wait in self.waits), "a request is lost"
        next_ones = [(w.last - w.first) / (w.tokens - 1) for w in self.waits if w.tokens > 1]
        written = sum(wait.tokens for wait in self.waits)
        read = self.schedule.read_tokens
        return {
            "requests": len(self.waits),
            "output_tokens_a_second": round(written / max(wait.last for wait in self.waits)),
            "first_token_ms": quantiles([wait.first - wait.arrival for wait in self.waits]),
            "next_token_ms": quantiles(next_ones),
            "answers_in_a_step": round(statistics.fmean(self.running), 1),
            "prompt_tokens_found_percent": round(100 * self.schedule.shared_tokens / read, 1),
            "preemptions": self.schedule.preemptions,
            "turns": len(self.host),
            "host_turn_ms": quantiles(self.host),
        }


def answered(operation: Operation, readers: Mapping[int, Request]) -> Result | None:
    """Any tokens; every answer ends at its length."""
    if not isinstance(operation, Step | Prefill):
        return None
    count = operation.count if isinstance(operation, Step) else 1
    rows: list[list[int]] = [[]] * (max(readers, default=-1) + 1)
    active = [True] * len(rows)
    for row, request in readers.items():
        left = request.max_new_tokens - len(request.answer)
        rows[row], active[row] = [7] * min(count, left), left > count
    return Result(rows, rows, active, lambda row, index, most: [])


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(seconds)
    at = lambda part: round(1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))], 2)
    return {"p50": at(0.5), "p99": at(0.99)}


def limits(clock: Clock, slots: int, share: bool, pages: int | None = None) -> Limits:
    pages = clock.pages if pages is None else pages
    page = clock.machine.page
    return Limits(slots, pages, page, CHUNK, STEP_TOKENS, REQUESTS, TILE, share)


def case(clock: Clock, model: str, slots: int, share: bool, count: int) -> dict[str, Any]:
    """One run at the rate of the model and machine."""
    rate = RATES[model, clock.machine.name]
    simulation = Simulation(clock, limits(clock, slots, share), count, rate)
    simulation.run()
    how = {"model": model, "machine": clock.machine.name, "requests_a_second": rate}
    return how | {"slots": slots, "prefix_sharing": share} | simulation.summary()


def capacity(clock: Clock, model: str, count: int) -> dict[str, Any]:
    """Answers at once in the memory of a few whole windows, all requests there at first."""
    pages = WINDOWS * WINDOW // clock.machine.page
    simulation = Simulation(clock, limits(clock, 1024, False, pages), count, None)
    simulation.run()
    found = simulation.summary()
    return {
        "model": model,
        "machine": clock.machine.name,
        "cache_gigabytes": round(WINDOWS * WINDOW * clock.token / 1e9, 1),
        "slots_of_whole_windows": WINDOWS,
        "answers_in_a_step": found["answers_in_a_step"],
        "times_as_many": round(found["answers_in_a_step"] / WINDOWS, 1),
        "preemptions": found["preemptions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args()
    clocks = {
        (model, machine.name): Clock(Config(**MODELS[model]), machine)
        for model in ("Qwen-7B", "Qwen-72B")
        for machine in MACHINES
    }
    result: dict[str, Any] = {
        "versions": record.versions(),
        "machine": record.machine(),
        "stated": {
            "prompt_tokens_mean": PROMPT,
            "of_them_shared": COMMON,
            "beginnings": COMMONS,
            "answer_tokens_mean": ANSWER,
            "window": WINDOW,
            "chunk": CHUNK,
            "step_tokens": STEP_TOKENS,
            "part_of_bandwidth": OF_BANDWIDTH,
            "part_of_sums": OF_SUMS,
            "devices": {" on ".join(key): clock.stated() for key, clock in clocks.items()},
        },
        "cases": [],
    }
    for (model, _), clock in clocks.items():
        for slots, share in itertools.product(SLOTS, (False, True)):
            result["cases"].append(case(clock, model, slots, share, options.requests))
            print(json.dumps(result["cases"][-1]), flush=True)
    counted = min(options.requests, 2000)
    result["capacity"] = [capacity(clocks[key], key[0], counted) for key in clocks]
    print(json.dumps(result["capacity"], indent=1))
    if options.requests == REQUESTS:
        record.write("simulation", result)


if __name__ == "__main__":
    main()
