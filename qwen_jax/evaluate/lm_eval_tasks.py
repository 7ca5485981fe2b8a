"""The original's questions as tasks of EleutherAI's lm-eval, for any model that it runs.

    python -m qwen_jax.evaluate.lm_eval_tasks --tasks mmlu,gsm8k --data data --output tasks
    lm_eval run --include_path tasks --tasks qwen_mmlu,qwen_gsm8k --model hf --model_args ...

A task is a YAML file and, beside it, its questions in the words of the original's prompts, which
hold the examples too. Replies are judged and averaged as `qwen_jax.evaluate` does it. Nothing here
needs a hub, and only lm-eval itself imports lm-eval.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from qwen_jax.cli import run
from qwen_jax.evaluate import questions, report
from qwen_jax.evaluate.tasks import choice, code, translation, worked
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.files import atomic

PREFIX = "qwen_"  # lm-eval has a task of its own for nearly every name
TASKS = {task.name: task for room in (choice, worked, code, translation) for task in room.TASKS}
MAX_NEW_TOKENS = 512  # of an answer, where the original took what its checkpoints say: this
_HERE = "qwen_jax.evaluate.lm_eval_tasks"  # this, where it is no __main__


def write(tasks: Sequence[str], data: Path, output: Path) -> dict[str, str]:
    """Make a folder for --include_path; comes back: task -> why there is none of it.

    tasks: names in TASKS; if empty, those whose data are there. data: a folder with a folder for
    each task. output: an empty folder, or a new one.
    """
    if unknown := [name for name in tasks if name not in TASKS]:
        raise ValueError(f"{unknown[0]!r} is no task for lm-eval; there are {', '.join(TASKS)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is no empty folder; choose another --output")
    chosen = [TASKS[name] for name in dict.fromkeys(tasks) or TASKS]
    found, missing = questions.read(chosen, data, None, not tasks, True)
    for name, asked in found.items():
        file = output / f"{PREFIX}{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(_row(name, one), ensure_ascii=False) + "\n" for one in asked)
        atomic.write_text(file, "".join(lines))
        atomic.write_text(file.with_suffix(".yaml"), _yaml(TASKS[name], file.resolve()))
    return missing


def _row(name: str, question: Question) -> dict[str, str]:
    """A line of the questions; all of it texts, so that none is taken for a number or a date."""
    return {
        "qwen_task": name,
        "id": question.id,
        "prompt": question.prompt,
        "answer": question.answer,
        "group": question.group,
        "facts": json.dumps(dict(question.facts), ensure_ascii=False),
    }


def _yaml(task: Task, file: Path) -> str:
    """A task as lm-eval reads it: values are JSON, which YAML takes, but for two functions."""
    told: dict[str, Any] = {
        "task": PREFIX + task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "unsafe_code": task.runs_code,
        "metadata": {"version": 1, "shots": task.shots, "exact": task.exact},
    }
    if task.kind == "choice":
        letters = [label.strip() for label in task.labels]
        told |= {
            "output_type": "multiple_choice",
            "doc_to_choice": letters,
            "target_delimiter": task.labels[0].removesuffix(letters[0]),
        }
    else:
        told |= {
            "output_type": "generate_until",
            "generation_kwargs": {
                "until": list(task.stop),
                "max_gen_toks": task.max_new_tokens or MAX_NEW_TOKENS,
                "do_sample": False,
                "temperature": 0.0,
                "repetition_penalty": 1.0,
            },
        }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in told.items()]
    return "\n".join(
        [
            *lines,
            f"process_results: !function {_HERE}.judged",
            "metric_list:",
            f"  - metric: {json.dumps(task.metric)}",
            f"    aggregation: !function {_HERE}.score",
            "    higher_is_better: true\n",
        ]
    )


# --- what lm-eval calls -------------------------------------------------------------------------
def judged(row: Mapping[str, str], results: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Metric -> what `score` needs of one question."""
    task = TASKS[row["qwen_task"]]
    facts = json.loads(row["facts"])
    question = Question(row["id"], row["prompt"], row["answer"], row["group"], facts=facts)
    if task.kind == "choice":
        completion = task.likeliest([total for total, _ in results])
        correct = float(completion == question.answer.strip())
    else:
        assert task.judge is not None
        completion = results[0].strip() if task.kind == "chat" else results[0]
        correct = task.judge(question, completion, cast(Any, None))  # none of these reads tokens
    found = {"task": task.name, "group": question.group, "answer": question.answer}
    return {task.metric: found | {"completion": completion, "correct": correct}}


def score(found: Iterable[Mapping[str, Any]]) -> float:
    """Of a whole task, of 1, by its own average."""
    samples = list(found)
    task = TASKS[samples[0]["task"]]
    asked = [Question("", "", one["answer"], one["group"]) for one in samples]
    return float(report.row(task, asked, samples, None, "")["score"]) / 100


def main(
    tasks: str | None = None, data: Path = Path("data"), output: Path = Path("lm_eval_tasks")
) -> None:
    """Write the original's questions as tasks of lm-eval.

    Args:
        tasks: Names of tasks with commas between them, such as mmlu,gsm8k_chat; by default, those
            whose data are there.
        data: Folder with a folder of data for each task, as its authors publish it.
        output: New folder, for lm-eval's --include_path.
    """
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    for name, reason in write(names, data, output).items():
        print(f"without {name}: {reason}")
    made = ", ".join(sorted(file.stem for file in output.glob("*.yaml")))
    print(f"{made} in {output}, for lm-eval's --include_path")


def command(prog: str = "python -m qwen_jax.evaluate.lm_eval_tasks") -> None:
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard

    note = f"Tasks: {', '.join(TASKS)}."
    reading.read(main, prog, None, extra="evaluate", note=note)


if __name__ == "__main__":
    run(command)
