"""A real server in a process of its own, for whoever measures or tries it."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
_LISTENING = re.compile(r"listening on (\S+)")


@dataclass(frozen=True)
class Server:
    """One that takes requests."""

    url: str
    process: subprocess.Popen[bytes]
    key: str = ""

    def metrics(self) -> dict[str, float]:
        """Everything that it tells Prometheus, by name and labels."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        answer = httpx.get(f"{self.url}/metrics", headers=headers, timeout=30)
        lines = answer.raise_for_status().text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def settled(self, seconds: float = 30.0) -> dict[str, float]:
        """Its metrics once no request is running or waiting; raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.metrics()
            if not found["qwen_requests_running"] and not found["qwen_requests_waiting"]:
                return found
            time.sleep(0.05)
        raise TimeoutError(f"requests are still under way after {seconds} s")


@contextmanager
def started(*options: str, key: str = "", seconds: float = 600.0) -> Iterator[Server]:
    """`python -m serve` on a free port, warm; ended by SIGTERM, and must then end well.

    options: of the command line. key: the only one it takes, if any. seconds: until it is warm.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        if key:
            keys = Path(folder) / "keys"
            keys.write_text(f"client {key}\n")
            options = (*options, "--api-keys", str(keys))
        command = [sys.executable, "-m", "serve", "--port", "0", *options]
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, stderr=file)
        try:
            yield Server(_ready(process, log, seconds), process, key)
            process.terminate()
            if process.wait(60):
                raise RuntimeError(f"the server ended badly:\n{_tail(log)}")
        finally:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    """The server's address, once it takes requests."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        found = _LISTENING.search(log.read_text())
        if found and httpx.get(f"{found[1]}/ready", timeout=30).status_code == 200:
            return found[1]
        time.sleep(0.2)
    raise RuntimeError(f"the server does not take requests:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-20:])
