"""L-Eval's closed tasks: questions about a long document, with answers that a rule can judge."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qwen_jax.evaluate.tasks.data import Data, lines
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.text.tokenizer import Tokenizer

_SOURCE = "https://huggingface.co/datasets/L4NLP/LEval (LEval/Exam), or its repository's LEval-data"
_LETTER = "Answer the question by the document, with the letter of the one right option alone.\n\n"
_LETTERS = (
    "Answer the question by the document, with the letters of all right options alone, such as A "
    "or AB.\n\n"
)
_WORKED = (
    "Answer the last question in the way of those before it; end with: The answer is NUMBER.\n\n"
)
_CODE = "Read this code with its comments; then say what the calls behind it give.\n\n"
_STORY = "Answer with True or False, by what the story says and not by what you know.\n\n"
_TRUTH = "Answer with True or False, by what you know of the real world.\n\n"


def _rows(data: Data, name: str) -> Iterator[tuple[str, str, str, str]]:
    """(id, document, question, answer) of one of its files."""
    files = [f"{folder}{name}.jsonl" for folder in ("", "Exam/", "Closed-ended-tasks/")]
    path = data.find("leval", *files, source=_SOURCE)
    for number, row in enumerate(lines(path)):
        asked, answers = _texts(path, row, "instructions"), _texts(path, row, "outputs")
        if not isinstance(document := row.get("input"), str) or len(asked) != len(answers):
            raise ValueError(
                f"{path}, object {number + 1}, has {len(asked)} instructions, {len(answers)} "
                f"outputs and an input of {type(row.get('input')).__name__}, expected a text and "
                "as many of both"
            )
        for at, (question, answer) in enumerate(zip(asked, answers, strict=True)):
            yield f"{number}/{at}", document, question, answer


def _texts(path: Path, row: dict[str, Any], name: str) -> list[str]:
    found = row.get(name)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{path} has a row whose {name!r} is {found!r:.60}, expected texts")
    return found


def _questions(name: str, told: str, data: Data) -> Iterator[Question]:
    for id, document, question, answer in _rows(data, name):
        yield Question(id, f"{told}{document}\n\n{question}", answer, document=document)


def _stories(data: Data) -> Iterator[Question]:
    """Each statement twice: is it so in the story, is it so in the world."""
    for id, document, question, answer in _rows(data, "sci_fi"):
        loyal, found, fact = answer.partition("[fact:")
        if not found:
            raise ValueError(f"answer {id} of sci_fi is {answer!r}, expected 'X [fact: Y]'")
        told = f"{_STORY}{document}\n\n{question}"
        yield Question(f"{id}/story", told, loyal.strip(), "story", document=document)
        truth = question.replace("the world described in the document", "the real world")
        yield Question(f"{id}/world", _TRUTH + truth, fact.strip(" ]"), "world")


# --- judges -------------------------------------------------------------------------------------
def chosen(answer: str) -> str:
    """The letters of an answer of the data: those of its first word, else A, as L-Eval has it."""
    return re.sub(r"[^A-D]", "", (answer.split() or [""])[0]) or "A"


def judge_letter(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    """The first of A, B, C, D anywhere in the reply, in "Because" too; without one, A."""
    found = re.search("[A-D]", reply)
    return float((found[0] if found else "A") == chosen(question.answer))


def judge_letters(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    """All letters that the reply chooses; a quarter for some of the right ones and no wrong one."""
    found, right = letters(reply), set(chosen(question.answer))
    if found == right:
        return 1.0
    return 0.25 if found < right else 0.0


def letters(reply: str) -> set[str]:
    """Those that a reply begins with; of one or none, also those with space, dot or ) behind."""
    if reply and reply in "ABCD":
        return set(reply)
    begun = re.match("[A-D]*", reply)
    first = begun[0] if begun else ""
    if len(first) > 1:
        return set(first)
    rest = reply[len(first) :].split("Question")[0]
    return {*first, *re.findall(r"[A-D](?=[\s.)])", rest)} or {"A"}


def judge_number(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    return float(_digits(reply) == _digits(question.answer) != "")


def _digits(reply: str) -> str:
    """Of the word behind "The answer is", else of the first paragraph's last with a digit.

    They end at a dot; what is no digit, a sign too, is passed over.
    """
    if said := re.search(r"The answer is (\S+)", reply):
        word = said[1]
    else:
        words = reply.split("\n\n")[0].split(" ")
        word = next((word for word in reversed(words) if re.search(r"\d", word)), "")
    return re.sub(r"\D", "", word.split(".")[0])


_SAID = "will be|of the code|is|would be|the value of|the result of|printed".split("|")


def judge_output(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    """The value stands among the reply's last words, or the first after "the final output"."""
    wanted, said = _value(question.answer), _value(reply)
    for words in _SAID:
        said = said.replace(words, "")
    count = len(question.answer.split()) + 3
    _, named, after = said.rpartition("the final output")
    near = " ".join(re.split(r"\s+", after)[:count] if named else re.split(r"\s+", said)[-count:])
    try:
        return float(float(near) == float(wanted))
    except ValueError:
        plain = lambda text: text.lower().replace(" ", "")
        return float(plain(wanted) in plain(near))


def _value(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    for one in (",", "'", "\\", ".0"):
        text = text.replace(one, "")
    return text.replace("] [", "][").replace("[ [", "[[").replace("] ]", "]]")


def judge_truth(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    """The first word with "true" or "false" in it, in any case."""
    found = re.search("true|false", reply.lower())
    return float(found is not None and found[0] == question.answer.lower())


def _task(
    name: str,
    title: str,
    read: Callable[[Data], Iterator[Question]],
    judge: Callable[[Question, str, Tokenizer], float],
    **more: Any,
) -> Task:
    how: dict[str, Any] = {"max_new_tokens": 512, "exact": False} | more
    return Task(f"leval_{name}", f"L-Eval {title}", "chat", read, judge, **how)


TASKS = [
    _task("coursera", "Coursera", partial(_questions, "coursera", _LETTERS), judge_letters),
    _task("gsm", "GSM", partial(_questions, "gsm100", _WORKED), judge_number),
    _task("quality", "QuALITY", partial(_questions, "quality", _LETTER), judge_letter),
    _task("tpo", "TOEFL", partial(_questions, "tpo", _LETTER), judge_letter),
    _task("codeu", "CodeU", partial(_questions, "codeU", _CODE), judge_output, keep="end"),
    _task("sci_fi", "SFiction", _stories, judge_truth),
]
