"""How much of the bundled model's conversations a network knows by heart."""

import json
from collections.abc import Sequence

from qwen_jax import Sampling
from qwen_jax.decoding.completion import complete
from qwen_jax.generate import chat_prompt
from qwen_jax.nn.model import Qwen
from tools.make_demo import CHATS

ROWS = 64  # questions at once
LONGEST = 96  # tokens of an answer; those that are learnt are shorter


def recited(params: Qwen) -> float:
    """The part of the conversations whose first answer comes out word for word, greedily."""
    questions, wanted = zip(*first_turns(), strict=True)
    got = answers(params, questions, Sampling(temperature=0))
    return sum(map(str.__eq__, got, wanted)) / len(wanted)


def first_turns() -> list[tuple[str, str]]:
    """The first question of every conversation, and its answer."""
    chats = (json.loads(line)["messages"] for line in CHATS.read_text("utf-8").splitlines())
    return [(question["content"], answer["content"]) for question, answer, *_ in chats]


def answers(params: Qwen, questions: Sequence[str], sampling: Sampling | None = None) -> list[str]:
    """To each question, asked by itself; all batches have one shape, so little is compiled."""
    prompts, stops = zip(*(chat_prompt(params, question) for question in questions), strict=True)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found = [""] * len(prompts)
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        rows = [prompts[number] for number in [*part, *part[-1:] * (ROWS - len(part))]]
        how = {"max_new_tokens": LONGEST, "eos_ids": stops[0], "seed": list(range(ROWS))}
        told = complete(params, rows, sampling, **how)
        for number, answer in zip(part, told, strict=False):
            found[number] = answer.text.strip()
    return found
