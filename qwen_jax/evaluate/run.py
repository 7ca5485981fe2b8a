"""An evaluation from its questions to its report; killed and called again, it goes on.

    report = evaluate(params, "qwen-7b-chat", ["mmlu_chat"], Path("data"), Path("out"))

What was answered stands in OUTPUT/progress until a task is done, then in OUTPUT/samples. Which
answers are there changes none of the others, so a run in pieces ends with the same report.
"""

import functools
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from qwen_jax import distributed
from qwen_jax.evaluate import kept, report
from qwen_jax.evaluate.answering import SLOTS
from qwen_jax.evaluate.asking import ask
from qwen_jax.evaluate.published import SUITES
from qwen_jax.evaluate.questions import TASKS, check, read
from qwen_jax.evaluate.tasks.task import Question, Task
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
    questions, skipped = read(
        chosen, data, limit, suite is not None and not tasks, run_generated_code
    )
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
    distributed.told_by_first(lambda: kept.claim(output, settings))
    results = []
    for name, asked in questions.items():
        with kept.Samples(output, name) as samples:
            tell(name, len(samples.known), len(asked))
            for answered in ask(params, TASKS[name], asked, samples.known, batch):
                for index, sample in answered:
                    samples.add(index, sample)
                tell(name, len(samples.known), len(asked))
        samples.finish(len(asked))
        published = SUITES[suite].get(name) if suite else None
        row = functools.partial(_row, TASKS[name], asked, samples.known, published, hashes[name])
        results.append(distributed.told_by_first(row))
    names = ("qwen_jax", "jax", "jaxlib", "flax", "numpy", "tiktoken")
    made = {
        "model": model,
        "versions": {name: importlib.metadata.version(name) for name in names},
        "settings": settings,
        "results": results,
        "skipped": [{"task": name, "reason": reason} for name, reason in skipped.items()],
    }
    if jax.process_index() == 0:
        report.write(output, made)
    return made


def _row(
    task: Task,
    asked: Sequence[Question],
    samples: Mapping[int, Mapping[str, Any]],
    published: float | None,
    data: str,
) -> dict[str, Any]:
    """A task's result, of all its samples."""
    correct: dict[str, list[float]] = {}
    for index, question in enumerate(asked):
        correct.setdefault(question.group, []).append(float(samples[index]["correct"]))
    whole = None
    if task.corpus is not None:
        completions = [samples[index]["completion"] for index in range(len(asked))]
        whole = task.corpus(completions, [question.answer for question in asked])
    return report.result(task, correct, published, data, whole)


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
