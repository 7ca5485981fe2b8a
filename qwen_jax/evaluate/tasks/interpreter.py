"""The code interpreter: does a chat model write code that runs, and find the right number with it.

The prompt, the reading of code and the counting are those of Qwen-Agent's benchmark, oddities
included: of plots and general tasks only the first code counts, `__main__` is never reached, a
number at the beginning of a line is none, 20,800 is 20. The code runs in our own child without a
network, and no package is installed on the way. Which plots are right was judged by other models;
none is here.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qwen_jax.evaluate.tasks.data import Data, field, lines, need
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.evaluate.tasks.worked import gsm8k_problems
from qwen_jax.sandbox import interpreter
from qwen_jax.sandbox.program import passes
from qwen_jax.text.tokenizer import Tokenizer

_SOURCE = (
    "https://qianwen-res.oss-cn-beijing.aliyuncs.com/assets/qwen_agent/"
    "benchmark_code_interpreter_data.zip, unpacked there"
)
_PACKAGES = ("matplotlib", "numpy", "pandas", "seaborn", "sympy")
_IMPORTS = """
import json, math, os, re
import matplotlib, numpy as np, pandas as pd, seaborn as sns
import matplotlib.pyplot as plt
from sympy import Eq, solve, symbols
plt.ion()
"""
_TURNS = 3  # runs of code before a model has to have found its number
_SECONDS = 30  # of the code of one question
_STARTS = 30  # seconds that a busy machine may take to import what stands before it
_TIMED = 10  # seconds of code of maths and plots, as in the original

# a number behind a space or one of $ % # {, before a space, a mark or the end
_NUMBER = re.compile(
    r"(?<=[\s$%#{])[+-]?(?=\S)(?:0|[1-9](?:\d*|\d{0,2}(?:,\d{3})*))?(?:\.\d*[1-9])?(?=[\s.,}]|$)"
)


# --- questions ----------------------------------------------------------------------------------
def prompt(query: str) -> str:
    """A question, which may hold turns in ChatML, up to where the model goes on."""
    asked = (interpreter.ASK + query).rstrip()
    answers = "" if "<|im_start|>assistant" in asked else "<|im_end|>\n<|im_start|>assistant\n"
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{asked}{answers}"
    )


def _questions(tag: str, data: Data) -> Iterator[Question]:
    """The questions with a tag, each with the names of the files that the user gives."""
    name = "eval_code_interpreter_v1.jsonl"
    path = data.find("code_interpreter", name, f"eval_data/{name}", source=_SOURCE)
    need("interpreter", *_PACKAGES)
    files = data.find("code_interpreter", "upload_file_clean", "upload_file", source=_SOURCE)
    for number, row in enumerate(lines(path)):
        if tag not in field(path, row, "tags").split(","):
            continue
        query = field(path, row, "query")
        given = row.get("input_file_path", [])
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
            raise ValueError(f"{path} has a row whose 'input_file_path' is {given!r:.60}")
        names = ", ".join(Path(one).name for one in given)
        words = "上传文件" if row.get("lang", "en") == "zh" else "Upload file "
        told = f"[{words}{names}]" if names else ""
        facts = {"query": query, "files": files}
        yield Question(str(number), prompt(told + query), "", facts=facts)


def _maths(data: Data) -> Iterator[Question]:
    problems = list(gsm8k_problems(data))
    need("interpreter", *_PACKAGES)
    for id, question, answer in problems:
        if last_number(answer) is None:
            raise ValueError(f"the answer of GSM8K's question {id} has no number: {answer[-40:]!r}")
        yield Question(id, prompt(question), answer)


# --- what a reply says ----------------------------------------------------------------------------
def codes(text: str, first: bool) -> str:
    """All code of a text, up to an input that repeats, or that of its first call."""
    found = ""
    while (at := text.find(interpreter.INPUT)) >= 0:
        given = text[at + len(interpreter.INPUT) :].split(interpreter.OBSERVATION)[0].strip()
        if not given:
            break
        found += f"# concat\n{interpreter.code_of(given)}\n"
        text = text.split(given)[1]
        if first or not text:
            break
    return found


def last_number(text: str) -> float | None:
    """Line breaks count as letters, and a number ends at a comma."""
    found = [match[0] for match in _NUMBER.finditer(text.strip(".").replace("\n", "\\n"))]
    try:
        return float(found[-1].replace(",", "")) if found else None
    except ValueError:  # a sign alone, or nothing before a mark
        return None


# --- judges -------------------------------------------------------------------------------------
def judge_runs(
    question: Question, reply: str, tokenizer: Tokenizer, *, first: bool, seconds: int
) -> float:
    """Whether the code, behind what the question has run already, comes to its end."""
    code = codes(reply, first)
    if not code:
        return 0.0
    query = question.facts["query"]
    code = interpreter.called(codes(query, False) + code if "<|im_start|>" in query else code)
    if "plt.show()" in code:
        code += "\nplt.pause(1)\nplt.close('all')\n"
    if "sns." in code and "plot" in code:
        code += "\nplt.close('all')\n"
    timer = f"import signal; signal.alarm({seconds})\n__name__ = 'builtins'\n"  # as in its exec
    program = f"{_IMPORTS}{timer}exec({code!r})"
    return float(passes(program, seconds + _STARTS, question.facts["files"]))


def turn(question: Question, said: str, reply: str) -> tuple[str, bool]:
    """On until there is an answer or an error."""
    text, shown, runs = interpreter.turn(said, reply, _SECONDS, _IMPORTS)
    fails = shown is None or "error:" in shown or "Traceback" in shown
    return text, runs < _TURNS and not fails


def judge_number(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    """By the last number of all that was said and shown."""
    found = last_number(reply)
    return float(found is not None and found == last_number(question.answer))


def _runs(tag: str, title: str, first: bool, seconds: int) -> Task:
    return Task(
        f"interpreter_{tag}_runs",
        f"Code interpreter, {title}",
        "chatml",
        partial(_questions, tag),
        partial(judge_runs, first=first, seconds=seconds),
        metric="executable code",
        stop=(interpreter.STOP,),
        penalty=True,
        runs_code=True,
        exact=False,
    )


TASKS = [
    Task(
        "interpreter_math",
        "Code interpreter, GSM8K",
        "chatml",
        _maths,
        judge_number,
        stop=(interpreter.STOP,),
        penalty=True,
        turn=turn,
        runs_code=True,
        exact=False,
    ),
    _runs("math", "maths", False, _TIMED),
    _runs("visualization", "plots", True, _TIMED),
    _runs("general", "general", True, _SECONDS),
]
