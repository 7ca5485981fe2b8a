"""What every result says beside its numbers, and where results lie."""

import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from qwen_jax.files import atomic

RESULTS = Path(__file__).parents[1] / "results"


def load_average() -> float:
    """Of the last minute: runnable processes; ours alone make it the number of cores."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gigabytes": round(memory / 1e9, 1),
        "platform": platform.platform(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(
    name: str, result: dict[str, Any], table: str | None = None, folder: Path = RESULTS
) -> None:
    """A result as benchmarks/results/<name>.json, with the day; a table beside it as <name>.md."""
    folder.mkdir(exist_ok=True)
    dated = {"date": time.strftime("%Y-%m-%d")} | result
    atomic.write_text(folder / f"{name}.json", json.dumps(dated, indent=1) + "\n")
    if table is not None:
        atomic.write_text(folder / f"{name}.md", table)
