"""Tool use: does a chat model name the right function, with the right input, and only if asked."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from qwen_jax.evaluate.tasks.data import Data, field, lines
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.text.tokenizer import Tokenizer

_PLACE = "https://qianwen-res.oss-cn-beijing.aliyuncs.com/opensource_data/"
_SETS = ("exam_plugin_v20231206", "exam_plugin_v1")


def _questions(kind: str, data: Data) -> Iterator[Question]:
    """Of the positive set, which needs a tool, or of the negative one, which does not."""
    files = [f"{version}_react_{kind}.jsonl" for version in _SETS]
    path = data.find("plugin", *files, source=f"{_PLACE}{_SETS[0]}/{files[0]}")
    for number, row in enumerate(lines(path)):
        answer = field(path, row, "response") if kind == "positive" else ""
        yield Question(str(number), field(path, row, "prompt"), answer)


class Call(NamedTuple):
    action: str
    input: str  # as JSON with sorted keys; empty where it cannot be read


def call(reply: str) -> Call:
    """The call that a reply in ReAct's form makes, read as the original reads it."""
    import json5

    reply += "\n"

    def between(start: str, end: str) -> str:
        """From after the first `start`; without an `end`, all but the last character."""
        at = reply.find(start)
        return reply[at + len(start) : reply.find(end)].strip()

    try:
        read = json5.loads(between("Action Input:", "Observation:"))
        arguments = json.dumps(read, ensure_ascii=False, sort_keys=True)
    except (ValueError, RecursionError):
        arguments = ""
    return Call(between("Action:", "Action Input:"), arguments)


def judge_selection(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    named, wanted = call(reply).action.lower(), call(question.answer).action.lower()
    return float("\nAction: " in reply and named == wanted)


def judge_input(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    """Rouge-L of the two inputs, over the model's own tokens."""

    def words(text: str) -> list[str]:
        return " ".join(tokenizer.decode([id]) for id in tokenizer.encode(text)).split()

    return rouge_l(words(call(reply).input), words(call(question.answer).input))


def judge_false_positive(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    return float("\nAction: " in reply)


def rouge_l(found: Sequence[object], wanted: Sequence[object]) -> float:
    """F1 of the longest common subsequence."""
    if not found or not wanted:
        return 0.0
    lengths = [0] * (len(wanted) + 1)
    for one in found:
        diagonal = 0
        for at, other in enumerate(wanted, 1):
            above = lengths[at]
            lengths[at] = diagonal + 1 if one == other else max(above, lengths[at - 1])
            diagonal = above
    return 2 * lengths[-1] / (len(found) + len(wanted))


TASKS = [
    Task(
        "tool_selection",
        "Tool selection",
        "chat",
        partial(_questions, "positive"),
        judge_selection,
        penalty=True,
    ),
    Task(
        "tool_input",
        "Tool input (Rouge-L)",
        "chat",
        partial(_questions, "positive"),
        judge_input,
        metric="rouge-l",
        penalty=True,
    ),
    Task(
        "tool_false_positive",
        "Tool false positives (lower is better)",
        "chat",
        partial(_questions, "negative"),
        judge_false_positive,
        metric="false positives",
        penalty=True,
    ),
]
