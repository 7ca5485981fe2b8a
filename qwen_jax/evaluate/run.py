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
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
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
from qwen_jax.files.lock import only_writer
from qwen_jax.nn.model import Qwen
from qwen_jax.sandbox import program as walls

_PACKAGES = ("qwen_jax", "jax", "jaxlib", "flax", "numpy", "tiktoken")

Tell = Callable[[str, int, int], None]  # a task's name, questions done, of how many


def evaluate(
    params: Qwen,
    model: str,
    tasks: Sequence[str],
    data: Path,
    output: Path,
    *,
    suite: str | None = None,
    adapter: Path | None = None,
    limit: int | None = None,
    run_generated_code: bool = False,
    batch: int = SLOTS,
    tell: Tell = lambda task, done, count: None,
) -> dict[str, Any]:
    """Answer and judge tasks' questions; what report.json holds comes back.

    model: its name in the report. tasks: names in TASKS; with a suite, those of its published row
    if empty, of which the ones without data are left out and named. data: a folder with a folder
    for each task. output: a new folder, or that of the same evaluation, which goes on. adapter: the
    folder of the one that is in params. limit: the first so many questions of each task. batch:
    texts at once, a power of two; no score depends on it.
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
        "weights": None if params.assets is None else _files(params.assets.folder, "*.json"),
        "adapter": None if adapter is None else _files(adapter, "adapter_*"),
        "dtype": str(params.embed.dtype),
        "suite": suite,
        "limit": limit,
        "data": hashes,
    }
    with only_writer(output, output / report.LOCK) if jax.process_index() == 0 else nullcontext():
        distributed.told_by_first(lambda: kept.claim(output, settings))
        results = []
        for name, asked in questions.items():
            samples = _answered(params, TASKS[name], asked, output, batch, tell)
            published = SUITES[suite].get(name) if suite else None
            row = functools.partial(
                report.row, TASKS[name], asked, samples, published, hashes[name]
            )
            results.append(distributed.told_by_first(row))
        made = {
            "model": model,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "settings": settings,
            "results": results,
            "skipped": [{"task": name, "reason": reason} for name, reason in skipped.items()],
        }
        if jax.process_index() == 0:
            report.write(output, made)
    return made


def _answered(
    params: Qwen, task: Task, asked: Sequence[Question], output: Path, batch: int, tell: Tell
) -> list[dict[str, Any]]:
    """A task's samples, kept as they come."""
    with kept.Samples(output, task.name, len(asked)) as samples:
        tell(task.name, len(samples.known), len(asked))
        for answered in ask(params, task, asked, samples.known, batch):
            for index, sample in answered:
                samples.add(index, sample)
            tell(task.name, len(samples.known), len(asked))
    samples.finish()
    return [samples.known[index] for index in range(len(asked))]


def _hash(questions: Iterable[Question]) -> str:
    hash = hashlib.sha256()
    for question in questions:
        hash.update(json.dumps([question.id, question.prompt, question.answer]).encode())
    return hash.hexdigest()[:16]


def _files(folder: Path, pattern: str) -> str:
    """A hash of a checkpoint's words, which hold those of its weights, or of an adapter."""
    files = sorted(folder.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
