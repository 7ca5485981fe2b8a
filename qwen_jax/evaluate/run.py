"""An evaluation from its questions to its report; killed and called again, it goes on.

    report = evaluate(params, "qwen-7b-chat", ["mmlu_chat"], Path("data"), Path("out"))

What was answered stands in OUTPUT/progress until a task is done, then in OUTPUT/samples. Which
answers are there changes none of the others, so a run in pieces ends with the same report.
"""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from qwen_jax import distributed
from qwen_jax.evaluate import kept, report
from qwen_jax.evaluate.answering import SLOTS
from qwen_jax.evaluate.asking import ask
from qwen_jax.evaluate.published import SUITES
from qwen_jax.evaluate.tasks import choice, code, tools, worked
from qwen_jax.evaluate.tasks.data import Data, NoData
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.nn.model import Qwen
from qwen_jax.sandbox import program as walls

TASKS = {task.name: task for task in (*choice.TASKS, *worked.TASKS, *code.TASKS, *tools.TASKS)}

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
    questions, skipped = _read(chosen, data, limit, suite is not None and not tasks)
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
    if jax.process_index() == 0:
        report.write(output, made)
    return made


def check(tasks: Sequence[str], suite: str | None, run_generated_code: bool) -> list[Task]:
    """The tasks that are meant. Raises ValueError before any work where something is unknown."""
    if suite is not None and suite not in SUITES:
        raise ValueError(f"there is no suite {suite!r}; there are {', '.join(SUITES)}")
    if unknown := [name for name in tasks if name not in TASKS]:
        raise ValueError(f"there is no task {unknown[0]!r}; there are {', '.join(TASKS)}")
    if not tasks and suite is None:
        raise ValueError("nothing to evaluate; give --tasks, --suite or both")
    for name in tasks:
        if TASKS[name].runs_code and not run_generated_code:
            raise ValueError(
                f"{name} runs programs that the model writes; read docs/evaluate.md, then give "
                "--run-generated-code"
            )
    names = list(dict.fromkeys(tasks)) or list(SUITES[suite or ""])
    return [
        TASKS[name] for name in names if run_generated_code or not TASKS[name].runs_code or tasks
    ]


def _read(
    tasks: Sequence[Task], data: Path, limit: int | None, lenient: bool
) -> tuple[dict[str, list[Question]], dict[str, str]]:
    """Every task's questions, and why there are none of some. lenient: that is no error."""
    questions: dict[str, list[Question]] = {}
    missing: dict[str, str] = {}
    for task in tasks:
        try:
            questions[task.name] = list(islice(task.read(Data(data)), limit))
            if not questions[task.name]:
                raise NoData(f"the data of {task.name} in {data} hold no question")
        except NoData as error:
            questions.pop(task.name, None)
            missing[task.name] = str(error)
    if missing and (not lenient or not questions):
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
    return questions, missing


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
