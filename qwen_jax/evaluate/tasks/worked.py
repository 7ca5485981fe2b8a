"""Tasks whose answers are worked out in words: GSM8K, MATH, BIG-Bench Hard."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from qwen_jax.evaluate.tasks import latex
from qwen_jax.evaluate.tasks.data import Data, NoData, field, lines, text
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.files import strict_json
from qwen_jax.text.tokenizer import Tokenizer

_GSM8K_SOURCE = "https://github.com/openai/grade-school-math (grade_school_math/data)"
_EXAMPLES_SOURCE = "https://github.com/QwenLM/Qwen/blob/main/eval/gsm8k_prompt.txt"
_MATH_SOURCE = "https://github.com/hendrycks/math (MATH.tar), unpacked there"
_BBH_SOURCE = "https://github.com/suzgunmirac/BIG-Bench-Hard"
_THINK = "\nLet's think step by step\n"

# a number as the original finds the last of a reply: sign, thousands, decimals
_NUMBER = re.compile(
    r"[+-]?(?=\.?[0-9])(?:0|[1-9]\d{0,2}(?:,\d{3})*|\d*)?(?:\.\d*)?(?=\D|$)", re.ASCII
)


# --- GSM8K --------------------------------------------------------------------------------------
def gsm8k_problems(data: Data) -> Iterator[tuple[str, str, str]]:
    """(id, question, worked answer that ends in "#### number")."""
    path = data.find("gsm8k", "test.jsonl", "data/test.jsonl", source=_GSM8K_SOURCE)
    for number, row in enumerate(lines(path)):
        answer = field(path, row, "answer")
        if "####" not in answer:
            raise ValueError(f"{path} has an answer without '####': {answer[:60]!r}")
        yield str(number), field(path, row, "question"), answer


def _gsm8k_base(data: Data) -> Iterator[Question]:
    examples = text(data.find("gsm8k", "gsm8k_prompt.txt", source=_EXAMPLES_SOURCE))
    for id, question, answer in gsm8k_problems(data):
        prompt = f"{examples}\nQuestion: {question}{_THINK}"
        yield Question(id, prompt, answer, shared=examples)


def _gsm8k_chat(data: Data) -> Iterator[Question]:
    yield from (Question(id, question, answer) for id, question, answer in gsm8k_problems(data))


def judge_last_digits(question: Question, completion: str, tokenizer: Tokenizer) -> float:
    """The last run of digits, without sign, comma or decimals: "20,800" is read as 800."""
    digits = re.findall(r"\d+", completion)
    if not digits or _unreadable(digits[-1]):
        return 0.0
    gold = re.search(r"#### (-?[0-9.,]+)", question.answer)
    return float(gold is not None and int(digits[-1]) == _value(gold[1]))


def judge_last_number(question: Question, completion: str, tokenizer: Tokenizer) -> float:
    """The last number of the reply, up to a ten-thousandth."""
    gold, found = _last_number(question.answer), _last_number(completion)
    return float(
        gold is not None
        and found is not None
        and math.isclose(gold, found, rel_tol=0, abs_tol=1e-4)
    )


def _last_number(reply: str) -> float | None:
    found = [match[0] for match in _NUMBER.finditer(reply)]
    return _value(found[-1]) if found else None


def _unreadable(digits: str) -> bool:
    """Python, which the original lets read numbers, knows no "007"."""
    return digits.startswith("0") and digits.strip("0") != "" and digits.isdigit()


def _value(number: str) -> float | None:
    number = number.replace(",", "").strip()
    if _unreadable(number.lstrip("+-")):
        return None
    try:
        return float(number)
    except ValueError:
        return None


# --- MATH ---------------------------------------------------------------------------------------
_MATH_EXAMPLES = (  # by words of their problems, all in the training split
    "Find the domain of the expression",
    r"\det \mathbf{A} = 2",
    "Terrell usually lifts two 20-pound weights",
    "If the system of equations",
)


def _problems(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(subject/number, problem, solution) of a split, in the order of names."""
    files = sorted(
        folder.glob("*/*.json"), key=lambda file: (file.parent.name, len(file.stem), file)
    )
    if not files:
        raise NoData(f"there is no SUBJECT/NUMBER.json in {folder}")
    for file in files:
        row = strict_json.read(file)
        id = f"{file.parent.name}/{file.stem}"
        yield id, field(file, row, "problem"), field(file, row, "solution")


def _math(data: Data) -> Iterator[Question]:
    train = data.find("math", "train", "MATH/train", source=_MATH_SOURCE)
    found: dict[str, tuple[str, str]] = {}
    for _, problem, solution in _problems(train):
        for words in _MATH_EXAMPLES:
            if words in problem:
                found.setdefault(words, (problem, solution))
    if missing := [words for words in _MATH_EXAMPLES if words not in found]:
        raise NoData(f"{train} has no problem with the words {missing[0]!r}, an exemplar's")
    shared = "".join(
        f"Problem:\n{problem}\n\nSolution:\n{solution}\nFinal Answer: The final answer is "
        f"${latex.boxed(solution)}$. I hope it is correct.\n\n"
        for problem, solution in (found[words] for words in _MATH_EXAMPLES)
    )
    for id, problem, solution in _problems(
        data.find("math", "test", "MATH/test", source=_MATH_SOURCE)
    ):
        prompt = f"{shared}Problem:\n{problem}\n\nSolution:\n"
        answer = latex.boxed(solution)
        if answer is None:
            raise ValueError(f"the solution of {id} in MATH has no \\boxed answer")
        yield Question(id, prompt, answer, id.split("/")[0], shared)


def judge_math(question: Question, completion: str, tokenizer: Tokenizer) -> float:
    return float(latex.same(latex.final(completion), question.answer))


# --- BIG-Bench Hard -----------------------------------------------------------------------------
def _bbh(data: Data) -> Iterator[Question]:
    folder = data.find("bbh", "bbh", source=_BBH_SOURCE)
    hints = data.find("bbh", "cot-prompts", "lib_prompt", source=_BBH_SOURCE)
    files = sorted(folder.glob("*.json"))
    if not files:
        raise NoData(f"there is no TASK.json in {folder}")
    for file in files:
        hint = text(data.find("bbh", f"{hints.name}/{file.stem}.txt", source=_BBH_SOURCE))
        hint = hint.split("-----\n")[-1].strip("\n")  # a note against training stands before
        shared = f"Follow the given examples and answer the question.\n{hint}\n\nQ: "
        examples = strict_json.read(file).get("examples")
        if not isinstance(examples, list):
            raise ValueError(f"{file} has no list of examples")
        for number, row in enumerate(examples):
            asked, target = field(file, row, "input"), field(file, row, "target")
            prompt = f"{shared}{asked}\nA: "
            yield Question(f"{file.stem}/{number}", prompt, target, file.stem, shared)


def judge_bbh(question: Question, completion: str, tokenizer: Tokenizer) -> float:
    """By letter where the target is one, else by words; both after "answer is"."""
    read = _letter if re.fullmatch(r"\([A-Z]\)", question.answer) else _phrase
    return float(read(completion) == read(question.answer))


def _letter(reply: str) -> str:
    """The first letter in parentheses after the first "answer is", else the first capital."""
    _, found, rest = reply.partition("answer is ")
    reply = rest.partition("answer is ")[0].strip() if found else reply
    match = re.search(r"\(([A-Z])\)", reply) or re.search(r"([A-Z])", reply)
    return match[1] if match else reply


def _phrase(reply: str) -> str:
    """The line after the first "answer is ", without its full stop."""
    _, found, rest = reply.partition("answer is ")
    reply = (rest.partition("answer is ")[0] if found else reply).strip().split("\n")[0]
    return reply.strip().removesuffix(".")


_STOPS = ("\n\n", "Question:")
TASKS = [
    Task("gsm8k", "GSM8K", "text", _gsm8k_base, judge_last_digits, shots=8, stop=_STOPS),
    Task("gsm8k_chat", "GSM8K, chat", "chat", _gsm8k_chat, judge_last_number),
    Task(
        "math",
        "MATH",
        "text",
        _math,
        judge_math,
        shots=4,
        stop=("Problem:",),
        max_new_tokens=512,
        exact=False,
    ),
    Task(
        "bbh",
        "BIG-Bench Hard",
        "text",
        _bbh,
        judge_bbh,
        shots=3,
        stop=("\nQ:", "\n\nQ"),
        max_new_tokens=512,
        average="macro",
        exact=False,
    ),
]
