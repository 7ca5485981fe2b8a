"""How long the largest bodies and answers hold up a real server's event loop.

    python -m benchmarks.serve_lag

For each: the longest hold-up, the time it takes, and by how much the server's memory grew
meanwhile. Writes benchmarks/results/serve_lag.json.
"""

import json
import sys
import time

import psutil
import tyro

from benchmarks.support import record
from benchmarks.support.largest import LARGEST, ask
from benchmarks.support.server import Server, started

OPTIONS = ("--model", "demo", "--slots", "16", "--max-length", "1024")
LIMIT = 0.1  # seconds
_WINDOW = 10.0  # seconds that the metric looks back


def measure() -> bool:
    """Whether nothing held up the loop for longer than the limit."""
    before = record.load_average()
    with started(*OPTIONS) as server:
        found = {"nothing": _one(server, None), **{name: _one(server, name) for name in LARGEST}}
    result = {
        "machine": record.machine() | {"load_average": [before, record.load_average()]},
        "versions": record.versions("starlette", "uvicorn", "pydantic"),
        "options": " ".join(OPTIONS),
        "largest": found,
    }
    record.write("serve_lag", result)
    return all(one["lag_milliseconds"] <= LIMIT * 1e3 for one in found.values())


def _one(server: Server, name: str | None) -> dict[str, float]:
    time.sleep(_WINDOW + 0.5)  # what was before is forgotten
    process = psutil.Process(server.process.pid)
    began, resident = time.monotonic(), process.memory_info().rss
    if name is not None:
        ask(server.url, "demo", name)
    seconds = time.monotonic() - began
    worst = server.metrics()["qwen_event_loop_lag_worst_seconds"]
    made = {
        "lag_milliseconds": round(worst * 1e3, 1),
        "seconds": round(seconds, 2),
        "grown_megabytes": round((process.memory_info().rss - resident) / 1e6, 1),
    }
    print(f"{name or 'nothing'}: {json.dumps(made)}", flush=True)
    return made


if __name__ == "__main__":
    sys.exit(0 if tyro.cli(measure) else 1)
