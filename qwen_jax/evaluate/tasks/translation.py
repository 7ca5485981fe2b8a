"""WMT22's general test, Chinese and English, translated by base models: BLEU of the whole set."""

from collections.abc import Iterator, Sequence
from functools import partial

from qwen_jax.evaluate.tasks.data import Data, need, text
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.text.tokenizer import Tokenizer

_SHOTS = 5
_SAMPLES = 1000  # of the set, drawn anew, for the error
_NAMES = {"en": "English", "zh": "Chinese"}
_SETS = {  # task's folder -> the set's name in it
    "wmt22": "generaltest2022",
    "wmt21": "newstest2021",
}


def _pairs(data: Data, year: str, source: str, target: str) -> list[tuple[str, str]]:
    """(a line, what it is in the other language)."""
    name = f"{_SETS[year]}.{source}-{target}"
    place = f"https://github.com/wmt-conference/{year}-news-systems"
    found = []
    for file in (f"sources/{name}.src.{source}", f"references/{name}.ref.A.{target}"):
        path = data.find(year, f"txt/{file}", file, source=place)
        found.append((path, text(path).removesuffix("\n").split("\n")))
    (path, lines), (other, references) = found
    if len(lines) != len(references):
        raise ValueError(f"{path} has {len(lines)} lines, {other} has {len(references)}")
    return list(zip(lines, references, strict=True))


def _questions(source: str, target: str, data: Data) -> Iterator[Question]:
    """Each behind the first five of the year before."""
    one, other = _NAMES[source], _NAMES[target]
    pairs = _pairs(data, "wmt22", source, target)
    examples = _pairs(data, "wmt21", source, target)[:_SHOTS]
    need("languages", "sacrebleu")
    shared = f"Translate from {one} to {other}.\n\n" + "".join(
        f"{one}: {line}\n{other}: {translated}\n\n" for line, translated in examples
    )
    for number, (line, reference) in enumerate(pairs):
        yield Question(str(number), f"{shared}{one}: {line}\n{other}:", reference, shared=shared)


def bleu(target: str, completions: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """(BLEU of all together, its error by drawing the set again and again), of 1."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="zh" if target == "zh" else "13a")
    found = [completion.strip() for completion in completions]
    score = metric.corpus_score(found, [list(references)], n_bootstrap=_SAMPLES)
    return score.score / 100, score._ci / 1.96 / 100


def judge(question: Question, completion: str, tokenizer: Tokenizer, *, target: str) -> float:
    """BLEU of one sentence, to look at; the task's score is that of all."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="zh" if target == "zh" else "13a", effective_order=True)
    return metric.sentence_score(completion.strip(), [question.answer]).score / 100


TASKS = [
    Task(
        f"wmt22_{source}_{target}",
        f"WMT22 {source}-{target}",
        "text",
        partial(_questions, source, target),
        partial(judge, target=target),
        corpus=partial(bleu, target),
        metric="BLEU",
        shots=_SHOTS,
        stop=("\n",),
        max_new_tokens=512,
        exact=False,
    )
    for source, target in (("zh", "en"), ("en", "zh"))
]
