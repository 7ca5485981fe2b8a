"""A task's questions put to a model, and what comes back as samples."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_jax import distributed
from qwen_jax.conversation import chat_prompt
from qwen_jax.decoding.completion import MAX_NEW_TOKENS, defaults_of, text_tokenizer
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.evaluate import scoring
from qwen_jax.evaluate.answering import Asked, answers
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.nn.model import Qwen
from qwen_jax.text import chatml
from qwen_jax.text.tokenizer import Tokenizer

_SEAM = 8  # tokens by which a cut text may be longer than its part of the whole
_BLOCK = 256  # questions of a choice between two writes of what is known


class WindowFull(ValueError):
    """A prompt leaves no room for an answer."""


def ask(
    params: Qwen,
    task: Task,
    questions: Sequence[Question],
    known: Mapping[int, Any],
    batch: int,
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """(number of a question, its sample) for those that are not known yet, as they are answered."""
    todo = [index for index in range(len(questions)) if index not in known]
    if task.kind == "choice":
        for at in range(0, len(todo), _BLOCK):
            part = todo[at : at + _BLOCK]
            chosen = _choose(params, task, [questions[index] for index in part], batch)
            yield list(zip(part, chosen, strict=True))
        return
    judge, tokenizer = task.judge, text_tokenizer(params)
    assert judge is not None
    said = dict.fromkeys(todo, "")  # behind each prompt, and not yet the end
    asked = {index: _ask(params, task, questions[index]) for index in todo}
    while asked:
        numbers, prompts, asked = list(asked), list(asked.values()), {}
        for place, answer in answers(params, prompts, batch):
            index = numbers[place]
            question = questions[index]
            reply = answer.text.strip() if task.kind == "chat" else answer.text
            said[index], goes_on = _turn(task, question, said[index], reply)
            if goes_on:
                with contextlib.suppress(WindowFull):
                    asked[index] = _ask(params, task, question, said[index])
                    continue
            sample = {"id": question.id, "prompt": question.prompt, "completion": said[index]}
            correct = judge(question, said[index], tokenizer)
            yield [(index, sample | {"answer": question.answer, "correct": correct})]


def _turn(task: Task, question: Question, said: str, reply: str) -> tuple[str, bool]:
    """What stands behind the prompt from now on, on all processes what the first one saw."""
    if task.turn is None:
        return reply, False
    said, goes_on = distributed.told_by_first(functools.partial(task.turn, question, said, reply))
    return said, goes_on


def _ask(params: Qwen, task: Task, question: Question, said: str = "") -> Asked:
    """Greedy, and without the checkpoint's repetition penalty but where the original left it.

    said: what stands behind the prompt by now.
    """
    defaults, tokenizer = defaults_of(params), text_tokenizer(params)
    most = task.max_new_tokens or defaults.max_new_tokens or MAX_NEW_TOKENS

    def read(prompt: str) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
        if task.kind == "chat":
            return chat_prompt(params, prompt)
        stops = chatml.stop_ids(tokenizer) if task.kind == "chatml" else [tokenizer.end_of_text]
        ends = tuple(dict.fromkeys((*defaults.eos_ids, *((id,) for id in stops))))
        return _ids(tokenizer, prompt), ends

    ids, ends = read(question.prompt + said)
    if question.document and (over := len(ids) + most - params.config.max_length) > 0:
        document = _ids(tokenizer, question.document)
        kept = max(0, len(document) - over - _SEAM)
        first = {"start": kept, "end": 0, "ends": (kept + 1) // 2}[task.keep]
        pieces = document[:first], document[len(document) - kept + first :]
        cut = "".join(map(tokenizer.decode, pieces))
        ids, ends = read(question.prompt.replace(question.document, cut, 1) + said)
    left = params.config.max_length - len(ids)
    if left < 1:
        raise WindowFull(
            f"question {question.id} of {task.name} takes {len(ids)} tokens, "
            f"this checkpoint's window is {params.config.max_length}"
        )
    penalty = defaults.sampling.repetition_penalty if task.penalty else 1.0
    sampling = Sampling(temperature=0.0, repetition_penalty=penalty, stop=task.stop)
    return Asked(ids, sampling, ends, min(most, left))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Control tokens count, as in the original's prompts."""
    return tokenizer.encode_prompt(text)


@dataclass(frozen=True)
class _Prompt:
    ids: list[int]
    prefix: int


def _choose(
    params: Qwen, task: Task, questions: Sequence[Question], batch: int
) -> list[dict[str, Any]]:
    """The likeliest label after each prompt, and what all of them score."""
    tokenizer = text_tokenizer(params)
    labels = [tokenizer.encode(label) for label in task.labels]
    prompts = []
    shared: dict[str, list[int]] = {}
    for question in questions:
        ids = _ids(tokenizer, question.prompt)
        head = shared.setdefault(question.shared, _ids(tokenizer, question.shared))
        kept = ids[-task.most_prompt_tokens :] if task.most_prompt_tokens else ids
        pairs = zip(head, kept, strict=False)
        same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(head), len(kept)))
        prompts.append(_Prompt(kept, same if len(kept) == len(ids) else 0))
    if all(len(label) == 1 for label in labels):
        scores = scoring.choices(
            params,
            [prompt.ids for prompt in prompts],
            [label[0] for label in labels],
            [prompt.prefix for prompt in prompts],
            batch,
        )
    else:  # a vocabulary that cuts them
        texts = [
            scoring.Text(prompt.ids, label, prompt.prefix) for prompt in prompts for label in labels
        ]
        found = scoring.likelihoods(params, texts, batch)
        scores = np.asarray([one.total for one in found], np.float32).reshape(len(prompts), -1)
    samples = []
    for question, row in zip(questions, scores, strict=True):
        samples.append(
            {
                "id": question.id,
                "prompt": question.prompt,
                "scores": {
                    label.strip(): float(s) for label, s in zip(task.labels, row, strict=True)
                },
                "answer": question.answer,
                "correct": float(task.likeliest(row.tolist()) == question.answer.strip()),
            }
        )
    return samples
