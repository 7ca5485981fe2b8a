"""Contestants kept alive in processes of their own, and run in turns."""

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

AVX2 = {  # lets contestants see a processor with AVX2 and no more: without bf16, without AVX-512
    # ours keeps to the first as well; XLA's library of products does not, and is left out
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type=",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
PAUSE = 0.3  # seconds between two contestants: thread pools spin a while after their work


class Runner(AbstractContextManager["Runner"]):
    """One contestant's process; `runner.ask("generate", ids=..., count=...)`."""

    def __init__(
        self, name: str, model: Path, dtype: str, module: str = "benchmarks.support.contestants"
    ) -> None:
        self.label = f"{name} {dtype}"
        self.busy = self.idle = 0.0  # core seconds of the latest request, and before it
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, name, str(model), dtype],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "TRANSFORMERS_VERBOSITY": "error"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ready(self) -> None:
        self._reply()

    def ask(self, do: str, within: float | None = None, **keywords: Any) -> Any:
        """What a method returns; TimeoutError, and the end of the process, past so many seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do} | keywords) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], within)[0]:
            self._process.kill()
            raise TimeoutError(f"{self.label}: {do} took more than {within} s")
        reply = self._reply()
        self.busy, self.idle = reply["busy"], reply["idle"]
        return reply["result"]

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "ended"}
        if "error" in reply:
            self._errors.seek(0)
            tail = self._errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{self.label}: {reply['error']}\n{tail}")
        return reply

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def rates(answer: Mapping[str, Any], prompt: int) -> dict[str, float]:
    """Tokens a second of one answer. The first token comes with the prompt."""
    count = len(answer["tokens"]) - 1
    return {
        "prefill": prompt / answer["first"],
        "decode": count / (answer["last"] - answer["first"]),
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Ours over theirs in each round, where both met the same machine, and the median."""
    each = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {"median": round(statistics.median(each), 3), "rounds": [round(x, 3) for x in each]}
