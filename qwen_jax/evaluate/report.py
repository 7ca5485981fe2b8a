"""What an evaluation found: scores with their errors, beside what was published."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.files import atomic

SETTINGS = "evaluation.json"  # in the folder of an evaluation: what it is of
FOLDERS = ("samples", "progress")
LOCK = "lock"  # there while it runs


def expect_free(output: Path) -> None:
    """Raise ValueError for a folder that holds something else than an evaluation, or for a file."""
    if (output / SETTINGS).is_file() or not output.exists():
        return
    begun = {LOCK, *FOLDERS}  # by a run that was killed at once
    if not output.is_dir() or {file.name for file in output.iterdir()} - begun:
        raise ValueError(f"{output} is not empty and holds no evaluation; choose another --output")


def row(
    task: Task,
    asked: Sequence[Question],
    samples: Sequence[Mapping[str, Any]],
    published: float | None,
    data: str,
) -> dict[str, Any]:
    """A task's result. samples: each question's. data: a hash of the questions."""
    correct: dict[str, list[float]] = {}
    for question, sample in zip(asked, samples, strict=True):
        correct.setdefault(question.group, []).append(float(sample["correct"]))
    groups = list(correct.values())
    every = [value for values in groups for value in values]
    average = f"{task.average} over {'questions' if task.average == 'micro' else 'groups'}"
    if task.corpus is not None:
        completions = [sample["completion"] for sample in samples]
        score, error = task.corpus(completions, [question.answer for question in asked])
        average = "of all questions together"
    elif task.average == "micro":
        score, error = _mean(every), _error(every)
    else:
        score = _mean([_mean(values) for values in groups])
        error = math.sqrt(sum(_error(values) ** 2 for values in groups)) / len(groups)
    found: dict[str, Any] = {
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
        found["classes"] = classes
    if len(groups) > 1:
        found["groups"] = {name: round(100 * _mean(values), 4) for name, values in correct.items()}
    return found


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
    if limit := report["settings"]["limit"]:
        count = "question" if limit == 1 else f"{limit} questions"
        lines += ["", f"Of each task only the first {count}; published scores are of all."]
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
