"""Prompts of the original's evaluation, written again from its description, for a second opinion.

Nothing of `qwen_jax.evaluate` is used: files are read here, words are put together here.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

LETTERS = "ABCD"
SHOWN = "You are an expert Python programmer, and here is your task: "
TESTS = " Your code should pass these tests:\n\n"

Asked = tuple[str, str, str]  # id, prompt, answer


def _rows(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.reader(opened))


def mmlu(root: Path) -> Iterator[Asked]:
    for file in sorted((root / "mmlu/test").iterdir()):
        subject = file.name[: -len("_test.csv")]
        about = " ".join(subject.split("_"))
        before = f"The following are multiple choice questions (with answers) about {about}."
        for row in _rows(root / f"mmlu/dev/{subject}_dev.csv"):
            before += "\n\n" + _item(row) + " " + row[5]
        for number, row in enumerate(_rows(file)):
            yield f"{subject}/{number}", before + "\n\n" + _item(row), row[5]


def _item(row: list[str]) -> str:
    choices = [f"{letter}. {row[at]}" for at, letter in enumerate(LETTERS, 1)]
    return "\n".join([f"Question: {row[0]}", *choices, "Answer:"])


def choices(prompt: str) -> list[str]:
    """What its last item offers."""
    item = prompt.rpartition("Question: ")[2]
    parts = [item.partition(f"\n{letter}. ")[2] for letter in LETTERS]
    ends = [*(f"\n{letter}. " for letter in LETTERS[1:]), "\nAnswer:"]
    return [part.partition(end)[0] for part, end in zip(parts, ends, strict=True)]


def bbh(root: Path) -> Iterator[Asked]:
    for file in sorted((root / "bbh/bbh").iterdir()):
        told = (root / f"bbh/cot-prompts/{file.stem}.txt").read_text("utf-8")
        worked = told[told.index("-----\n") + 6 :]
        for number, row in enumerate(json.loads(file.read_text("utf-8"))["examples"]):
            prompt = "Follow the given examples and answer the question.\n" + worked
            prompt += "\n\nQ: " + row["input"] + "\nA: "
            yield f"{file.stem}/{number}", prompt, row["target"]


def gsm8k(root: Path) -> Iterator[Asked]:
    worked = (root / "gsm8k/gsm8k_prompt.txt").read_text("utf-8")
    for id, question, answer in gsm8k_chat(root):
        yield id, f"{worked}\nQuestion: {question}\nLet's think step by step\n", answer


def gsm8k_chat(root: Path) -> Iterator[Asked]:
    lines = (root / "gsm8k/test.jsonl").read_text("utf-8").splitlines()
    for number, row in enumerate(map(json.loads, lines)):
        yield str(number), row["question"], row["answer"]


def mbpp(root: Path) -> Iterator[Asked]:
    lines = (root / "mbpp/mbpp.jsonl").read_text("utf-8").splitlines()
    rows = {row["task_id"]: row for row in map(json.loads, lines)}
    asked = lambda row: SHOWN + row["text"] + TESTS + "\n".join(row["test_list"]) + "\n[BEGIN]\n"
    before = "".join(asked(rows[id]) + rows[id]["code"] + "\n[DONE]\n\n" for id in (2, 3, 4))
    for id in sorted(rows)[3:]:
        yield str(id), before + asked(rows[id]), "\n".join(rows[id]["test_list"])


RECIPES = {"mmlu": mmlu, "gsm8k": gsm8k, "gsm8k_chat": gsm8k_chat, "mbpp": mbpp, "bbh": bbh}
STOPS = {"gsm8k": ("\n\n", "Question:"), "mbpp": ("[DONE]",), "bbh": ("\nQ:", "\n\nQ")}
