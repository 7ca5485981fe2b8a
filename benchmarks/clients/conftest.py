"""One server with a key for all clients, and what became of every check as JSON."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.support import record
from benchmarks.support.server import ROOT, Server, started

KEY = "a-key-for-all-clients"
CLIENTS = """openai anthropic openai-agents pydantic-ai-slim litellm huggingface_hub
    langchain-openai cohere"""
PACKAGES = (*CLIENTS.split(), "lm-eval", "jax", "starlette", "uvicorn", "llguidance")
NODE = Path(__file__).parent / "node"
PROXY = ROOT / ".venv-proxy" / "bin" / "litellm"
found: dict[str, str] = {}


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The bundled model, without a compilation or a slot that is left taken by any client."""
    options = ("--model", "demo", "--slots", "8", "--queue", "32")
    with started(*options, key=KEY) as server:
        yield server
        metrics = server.settled()
        assert metrics["qwen_compilations"] == metrics["qwen_engine_failures_total"] == 0


def node_versions() -> dict[str, str]:
    """Of Node and of the packages that its clients are."""
    packages = json.loads((NODE / "package.json").read_text())["dependencies"]
    files = {name: NODE / "node_modules" / name / "package.json" for name in packages}
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    found = {name: json.loads(file.read_text())["version"] for name, file in files.items()}
    return {"node": node.stdout.strip(), **{f"{name} for Node": v for name, v in found.items()}}


def proxy_version() -> dict[str, str]:
    ask = "import importlib.metadata as known; print(known.version('litellm'))"
    command = [str(PROXY.with_name("python")), "-c", ask]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"litellm as a proxy": made.stdout.strip()}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.failed:
        found[report.nodeid.removeprefix("benchmarks/clients/test_")] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Only a whole run is kept."""
    if session.config.getoption("keyword") or len(session.config.args) != 1 or not found:
        return
    versions = record.versions(*PACKAGES) | proxy_version() | node_versions()
    result = {"versions": versions, "machine": record.machine()}
    record.write("clients", result | {"checks": found})
