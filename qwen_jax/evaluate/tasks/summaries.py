"""VCSUM: summaries of long Chinese meetings, as LongBench asks for them and judges them."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from qwen_jax.evaluate.tasks.data import Data, field, lines, need
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.files import user_cache
from qwen_jax.text.tokenizer import Tokenizer

_SOURCE = "https://huggingface.co/datasets/THUDM/LongBench (data.zip), unpacked there"


def _questions(data: Data) -> Iterator[Question]:
    path = data.find("longbench", "data/vcsum.jsonl", "vcsum.jsonl", source=_SOURCE)
    need("languages", "jieba")
    for number, row in enumerate(lines(path)):
        meeting, answers = field(path, row, "context"), row.get("answers")
        if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], str):
            raise ValueError(f"{path} has a row whose 'answers' are {answers!r:.60}, expected one")
        prompt = (
            "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n"
            f"会议记录：\n{meeting}\n\n会议总结："
        )
        yield Question(str(number), prompt, answers[0], document=meeting)


@cache
def _jieba() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own code, in newer Pythons
        import jieba

    jieba.setLogLevel("WARNING")
    cutter = jieba.Tokenizer()
    folder = user_cache.folder() / "jieba"  # it trusts what it finds, so no place of everybody's
    with contextlib.suppress(OSError):
        folder.mkdir(0o700, parents=True, exist_ok=True)
    cutter.tmp_dir = str(folder)
    return cutter


def sentences(text: str) -> list[list[str]]:
    """Words, by full stops; Chinese ones are none."""
    spaced = " ".join(_jieba().cut(text, cut_all=False))
    return [" ".join(part.split()).split(" ") for part in spaced.split(".") if part]


def judge(question: Question, completion: str, tokenizer: Tokenizer) -> float:
    return rouge_l(sentences(completion), sentences(question.answer))


def rouge_l(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """F1 of the words in the longest common subsequences of any two sentences, each word once."""
    if not found or not wanted:
        return 0.0
    common = {word for one in wanted for other in found for word in _common(one, other)}
    recall = len(common) / len({word for one in wanted for word in one})
    precision = len(common) / len({word for one in found for word in one})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common(one: Sequence[str], other: Sequence[str]) -> Iterator[str]:
    """The words of a longest common subsequence, of several the one that ends latest in `one`."""
    lengths = [[0] * (len(other) + 1)]
    for word in one:
        above, row = lengths[-1], [0]
        for at, its in enumerate(other):
            row.append(above[at] + 1 if word == its else max(above[at + 1], row[at]))
        lengths.append(row)
    i, j = len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            i, j = i - 1, j - 1
            yield one[i]
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1


TASKS = [
    Task(
        "vcsum",
        "VCSUM",
        "chat",
        _questions,
        judge,
        metric="rouge-l",
        max_new_tokens=512,
        keep="ends",
        exact=False,
    )
]
