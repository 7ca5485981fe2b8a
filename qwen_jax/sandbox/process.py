"""Questions to `worker` processes, which start when they are needed and stay for the next."""

import atexit
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]  # where qwen_jax is, installed or not


class Processes:
    """As many as there were questions at once; each answers one at a time.

    seconds: of computing that an answer to a short question may take.
    """

    def __init__(self, seconds: float = 2.0):
        self._seconds = seconds
        self._idle: list[subprocess.Popen[str]] = []
        self._owner = os.getpid()
        atexit.register(self.close)

    def ask(self, task: str, *arguments: Any) -> Any:
        """What a task of the worker's returns, all of it JSON; at once from any thread.

        Raises ValueError with what went wrong, or that it takes too much time or memory.
        """
        line = json.dumps([task, arguments])
        process = self._take()
        try:
            answer = _exchange(process, line)
        except BaseException:  # its answer would be taken for that to the next question
            _end(process)
            raise
        self._idle.append(process)
        if "failed" in answer:
            raise ValueError(answer["failed"])
        return answer["done"]

    def close(self) -> None:
        while self._idle and self._owner == os.getpid():
            _end(self._idle.pop())

    def _take(self) -> subprocess.Popen[str]:
        if self._owner != os.getpid():  # after a fork: they go on answering the parent
            self._idle, self._owner = [], os.getpid()
        try:
            process = self._idle.pop()
        except IndexError:
            return self._start()
        if process.poll() is None:
            return process
        _end(process)
        return self._take()

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "qwen_jax.sandbox.worker", str(self._seconds)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=nowhere, encoding="ascii"
        )


def _exchange(process: subprocess.Popen[str], line: str) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if answer:
        return json.loads(answer)
    if process.wait() == -signal.SIGPROF:
        raise ValueError("it takes too much time")
    raise ValueError(f"it ended the process that computed it ({process.returncode})")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


ask = Processes().ask
