"""The exemplars that lm-eval's wheel ships, laid out as the tasks' authors publish their data.

Few as they are, they have the real form. They check the machinery; no score on them is a published
one: MMLU's questions are its exemplars, each subject after those of the subject before it; each of
BBH's is a task of its own, after the other two of its task; GSM8K's last four come after the first
four; MBPP's three are asked after themselves.
"""

import csv
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_BBH_ANSWER = "the answer is "
_THINK = "Let's think step by step"


class _Loader(yaml.SafeLoader):
    """lm-eval's files name functions by tags of its own, which are not wanted here."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _tasks() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise SystemExit("there is no lm-eval; pip install lm-eval==0.4.13")
    return Path(spec.origin).parent / "tasks"


def _exemplars(pattern: str) -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """(a task's file, what it is about, its examples)."""
    for file in sorted(_tasks().glob(pattern)):
        told = yaml.load(file.read_text("utf-8"), _Loader)
        if "fewshot_config" in told and "samples" in told["fewshot_config"]:
            yield file.stem, told.get("description", ""), told["fewshot_config"]["samples"]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


# --- MMLU ---------------------------------------------------------------------------------------
def _multiple_choice(sample: dict[str, str]) -> list[str]:
    """Question, the four choices, the letter. One question has a fifth, (E), and that answer."""
    parts = re.split(r"\s+\(([A-D])\)\s", sample["question"].strip())
    letters = "".join(parts[1::2])
    at = letters.rindex("ABCD")  # a question may speak of (A) as well
    if at + 4 != len(letters):
        raise ValueError(f"not four choices: {sample['question']!r}")
    answer = re.findall(r"answer is \(?([A-E])\)?", sample["target"])[-1]
    asked = parts[0] + "".join(
        f" ({letter}) {text}"
        for letter, text in zip(parts[1 : 2 * at : 2], parts[2 : 2 * at + 1 : 2], strict=True)
    )
    return [asked, *parts[2 * at + 2 :: 2], answer]


def _lay_out_mmlu(root: Path) -> int:
    found = {
        name.removeprefix("mmlu_"): [_multiple_choice(sample) for sample in samples]
        for name, _, samples in _exemplars("mmlu/flan_cot_fewshot/mmlu_*.yaml")
    }
    subjects = list(found)
    for before, subject in zip([subjects[-1], *subjects], subjects, strict=False):
        for split, rows in (("dev", found[before]), ("test", found[subject])):
            path = root / f"mmlu/{split}/{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
    return sum(map(len, found.values()))


# --- BIG-Bench Hard, GSM8K, MBPP ----------------------------------------------------------------
def _lay_out_bbh(root: Path) -> int:
    count = 0
    for task, description, samples in _exemplars("bbh/cot_fewshot/*.yaml"):
        for left_out, sample in enumerate(samples):
            others = [one for number, one in enumerate(samples) if number != left_out]
            worked = [f"Q: {one['input']}\nA: {_THINK}.\n{one['target']}" for one in others]
            hint = "\n\n".join([description.strip(), *worked])
            answer = sample["target"].rpartition(_BBH_ANSWER)[2].strip().removesuffix(".")
            example = {"input": sample["input"], "target": answer}
            name = f"{task}_{left_out}"
            _write(root / f"bbh/cot-prompts/{name}.txt", f"An exemplar.\n-----\n{hint}")
            _write(root / f"bbh/bbh/{name}.json", json.dumps({"examples": [example]}))
            count += 1
    return count


def _lay_out_gsm8k(root: Path) -> int:
    ((_, _, samples),) = _exemplars("gsm8k/gsm8k-cot.yaml")
    shown, asked = samples[:4], samples[4:]
    worked = []
    for sample in shown:
        steps, _, number = sample["target"].rpartition(" The answer is ")
        told = f"{steps}\nThe answer is {number.rstrip('.')}"
        worked.append(f"Question: {sample['question']}\n{_THINK}\n{told}\n")
    rows = []
    for sample in asked:
        steps, _, number = sample["target"].rpartition(" The answer is ")
        rows.append(
            {"question": sample["question"], "answer": f"{steps}\n#### {number.rstrip('.')}"}
        )
    _write(root / "gsm8k/gsm8k_prompt.txt", "\n".join(worked))
    _write_lines(root / "gsm8k/test.jsonl", rows)
    return len(rows)


def _lay_out_mbpp(root: Path) -> int:
    """As a module that imports nothing from the hub: only the list in it is read."""
    source = (_tasks() / "mbpp/utils.py").read_text("utf-8")
    body = source[source.index("def list_fewshot_samples") :]
    scope: dict[str, Any] = {}
    exec(body, scope)  # lm-eval's own code, which is installed here
    rows = [
        {name: row[name] for name in ("task_id", "text", "code", "test_list")}
        for row in scope["list_fewshot_samples"]()
    ]
    asked = [row | {"task_id": row["task_id"] + 10} for row in rows]
    _write_lines(root / "mbpp/mbpp.jsonl", rows + asked)
    return len(asked)


def lay_out(root: Path) -> dict[str, int]:
    """Write a folder of data; task -> number of its questions."""
    gsm8k = _lay_out_gsm8k(root)
    return {
        "mmlu": _lay_out_mmlu(root),
        "bbh": _lay_out_bbh(root),
        "gsm8k": gsm8k,
        "gsm8k_chat": gsm8k,
        "mbpp": _lay_out_mbpp(root),
    }
