"""What an evaluation asks: tasks by name, and their questions; no JAX."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from qwen_jax.evaluate.published import SUITES
from qwen_jax.evaluate.tasks import (
    agent,
    choice,
    code,
    documents,
    interpreter,
    summaries,
    tools,
    translation,
    worked,
)
from qwen_jax.evaluate.tasks.data import Data, NoData
from qwen_jax.evaluate.tasks.task import Question, Task

_ROOMS = (choice, worked, code, tools, interpreter, agent, documents, summaries, translation)
TASKS = {task.name: task for room in _ROOMS for task in room.TASKS}


_UNWILLING = (
    "runs programs that the model writes; read docs/evaluate.md, then give --run-generated-code"
)


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
            raise ValueError(f"{name} {_UNWILLING}")
    return [TASKS[name] for name in dict.fromkeys(tasks) or SUITES[suite or ""]]


def read(
    tasks: Sequence[Task],
    data: Path,
    limit: int | None,
    lenient: bool,
    run_generated_code: bool,
) -> tuple[dict[str, list[Question]], dict[str, str]]:
    """Every task's questions, and why there are none of some. lenient: that is no error."""
    questions: dict[str, list[Question]] = {}
    missing: dict[str, str] = {}
    for task in tasks:
        if task.runs_code and not run_generated_code:
            missing[task.name] = f"it {_UNWILLING}"
            continue
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
