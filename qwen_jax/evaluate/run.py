"""An evaluation from its questions to its report; killed and called again, it goes on.

    report = evaluate(params, "qwen-7b-chat", ["mmlu_chat"], Path("data"), Path("out"))

What was answered stands in OUTPUT/progress until a task is done, then in OUTPUT/samples. Which
answers are there changes none of the others, so a run in pieces ends with the same report.
"""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from qwen_jax.evaluate import report
from qwen_jax.evaluate.answering import SLOTS
from qwen_jax.evaluate.asking import ask
from qwen_jax.evaluate.published import SUITES
from qwen_jax.evaluate.questions import TASKS, check, read
from qwen_jax.evaluate.tasks.task import Question
from qwen_jax.files import atomic, strict_json
from qwen_jax.nn.model import Qwen
from qwen_jax.sandbox import program as walls

Tell = Callable[[str, int, int], None]  # a task's name, questions done, of how many


def evaluate(
    params: Qwen,
    model: str,
    tasks: Sequence[str],
    data: Path,
    output: Path,
    *,
    suite: str | None = None,
    limit: int | None = None,
    run_generated_code: bool = False,
    batch: int = SLOTS,
    tell: Tell = lambda task, done, count: None,
) -> dict[str, Any]:
    """Answer and judge tasks' questions; what report.json holds comes back.

    model: its name in the report. tasks: names in TASKS; with a suite, those of its published row
    if empty, of which the ones without data are left out and named. data: a folder with a folder
    for each task. output: a new folder, or that of the same evaluation, which goes on. limit: the
    first so many questions of each task. batch: texts at once, a power of two; no score depends
    on it.
    """
    chosen = check(tasks, suite, run_generated_code)
    questions, skipped = read(chosen, data, limit, suite is not None and not tasks)
    if run_generated_code and (unkept := walls.missing()):
        print(f"generated code runs without a part of its walls: {unkept}", file=sys.stderr)
    hashes = {name: _hash(asked) for name, asked in questions.items()}
    settings = {
        "model": model,
        "weights": _weights_hash(params),
        "dtype": str(params.embed.dtype),
        "suite": suite,
        "limit": limit,
        "data": hashes,
    }
    first = jax.process_index() == 0
    if first:
        _claim(output, settings)
    results = []
    for name, asked in questions.items():
        with _Samples(output, name, first) as samples:
            for index, sample in ask(params, TASKS[name], asked, samples.known, batch):
                samples.add(index, sample)
                tell(name, len(samples.known), len(asked))
        correct: dict[str, list[float]] = {}
        for index, question in enumerate(asked):
            correct.setdefault(question.group, []).append(float(samples.known[index]["correct"]))
        samples.finish(len(asked))
        published = SUITES[suite].get(name) if suite else None
        results.append(report.result(TASKS[name], correct, published, hashes[name]))
    names = ("qwen_jax", "jax", "jaxlib", "flax", "numpy", "tiktoken")
    made = {
        "model": model,
        "versions": {name: importlib.metadata.version(name) for name in names},
        "settings": settings,
        "results": results,
        "skipped": [{"task": name, "reason": reason} for name, reason in skipped.items()],
    }
    if first:
        report.write(output, made)
    return made


def _hash(questions: Iterable[Question]) -> str:
    hash = hashlib.sha256()
    for question in questions:
        hash.update(json.dumps([question.id, question.prompt, question.answer]).encode())
    return hash.hexdigest()[:16]


def _weights_hash(params: Qwen) -> str | None:
    """Of what the checkpoint's folder says of its weights."""
    if params.assets is None:
        return None
    files = sorted(params.assets.folder.glob("*.json"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


# --- what is known ------------------------------------------------------------------------------
def _claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, or find the same evaluation in it."""
    told = output / report.SETTINGS
    if told.exists():
        if (found := strict_json.read(told)) != settings:
            different = [name for name in settings if found.get(name) != settings[name]]
            raise ValueError(
                f"{output} holds another evaluation, with another {', '.join(different)}; "
                "choose another --output, or delete it"
            )
        return
    report.expect_free(output)
    for folder in ("samples", "progress"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    atomic.write_text(told, json.dumps(settings, indent=1))


class _Samples:
    """A task's answered questions by number; on the disk as soon as they are known."""

    def __init__(self, output: Path, task: str, writes: bool):
        self._done = output / "samples" / f"{task}.jsonl"
        self._open = output / "progress" / f"{task}.jsonl"
        self._file = None
        self.known: dict[int, dict[str, Any]] = {}
        if self._done.exists():
            self.known = dict(
                enumerate(map(json.loads, self._done.read_text("utf-8").splitlines()))
            )
        elif self._open.exists():
            whole = self._open.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]  # a last line may be torn
            self._open.write_bytes(whole)
            for line in whole.decode().splitlines():
                index, sample = json.loads(line)
                self.known[index] = sample
        if writes and not self._done.exists():
            self._file = self._open.open("a", encoding="utf-8")

    def add(self, index: int, sample: dict[str, Any]) -> None:
        self.known[index] = sample
        if self._file is not None:
            self._file.write(json.dumps([index, sample], ensure_ascii=False) + "\n")
            self._file.flush()

    def finish(self, count: int) -> None:
        if self._file is not None:
            ordered = (self.known[index] for index in range(count))
            atomic.write_text(self._done, report.sample_lines(ordered))
            self._open.unlink()

    def __enter__(self) -> "_Samples":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
