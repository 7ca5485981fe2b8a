"""What an evaluation found: scores with their errors, beside what was published."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_jax.evaluate.tasks.task import Task
from qwen_jax.files import atomic

SETTINGS = "evaluation.json"  # in the folder of an evaluation: what it is of


def expect_free(output: Path) -> None:
    """Raise ValueError for a folder that holds something else than an evaluation, or for a file."""
    if (output / SETTINGS).is_file() or not output.exists():
        return
    if not output.is_dir() or any(output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no evaluation; choose another --output")


def result(
    task: Task,
    correct: Mapping[str, Sequence[float]],
    published: float | None,
    data: str,
    whole: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """One row. correct: for each group, what its questions got. data: a hash of the questions.

    whole: (score, error) of a task whose score is no mean.
    """
    groups = [list(values) for values in correct.values()]
    every = [value for values in groups for value in values]
    average = f"{task.average} over {'questions' if task.average == 'micro' else 'groups'}"
    if whole is not None:
        score, error = whole
        average = "of all questions together"
    elif task.average == "micro":
        score, error = _mean(every), _error(every)
    else:
        score = _mean([_mean(values) for values in groups])
        error = math.sqrt(sum(_error(values) ** 2 for values in groups)) / len(groups)
    row: dict[str, Any] = {
        "task": task.name,
        "title": task.title,
        "metric": task.metric,
        "shots": task.shots,
        "average": average,
        "score": round(100 * score, 4),
        "stderr": round(100 * error, 4),
        "count": len(every),
        "published": published,
        "difference": None if published is None else round(100 * score - published, 4),
        "protocol": "exact" if task.exact else "comparable",
        "data": data,
    }
    if classes := _classes(task, correct):
        row["classes"] = classes
    if len(groups) > 1:
        row["groups"] = {group: round(100 * _mean(values), 4) for group, values in correct.items()}
    return row


def _classes(task: Task, correct: Mapping[str, Sequence[float]]) -> dict[str, float]:
    found = {}
    for name, groups in task.classes.items():
        there = [correct[group] for group in groups if group in correct]
        means = [_mean(values) for values in there]
        if there and task.average == "micro":
            found[name] = round(100 * _mean([value for values in there for value in values]), 4)
        elif there:
            found[name] = round(100 * _mean(means), 4)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """Standard error of a mean: for right and wrong, the binomial one."""
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) / len(values))


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """report.json and report.md, each whole or not at all."""
    atomic.write_text(folder / "report.json", json.dumps(report, ensure_ascii=False, indent=1))
    atomic.write_text(folder / "report.md", markdown(report))


def markdown(report: Mapping[str, Any]) -> str:
    lines = [
        f"# {report['model']}",
        "",
        "| task | metric | shots | ours, % | published, % | difference | questions | protocol |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in report["results"]:
        published = "" if row["published"] is None else f"{row['published']:g}"
        difference = "" if row["difference"] is None else f"{row['difference']:+.1f}"
        lines.append(
            f"| {row['title']} | {row['metric']} | {row['shots']} "
            f"| {row['score']:.1f} ± {row['stderr']:.1f} | {published} | {difference} "
            f"| {row['count']} | {row['protocol']} |"
        )
    for row in report["results"]:
        if classes := row.get("classes"):
            listed = ", ".join(f"{name} {score:.1f}" for name, score in classes.items())
            lines += ["", f"{row['title']}: {listed}."]
    for skipped in report["skipped"]:
        lines += ["", f"Not measured: {skipped['task']}: {skipped['reason']}."]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    ending = (
        "± is one standard error. Exact: prompts and judging of the published number; comparable: "
        f"those it is thought to have. {versions}."
    )
    return "\n".join([*lines, "", ending]) + "\n"


def sample_lines(samples: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
