"""How much of the bundled model's conversations a network knows by heart."""

import json
from collections.abc import Sequence

from qwen_jax import Sampling, chat
from qwen_jax.conversation import chat_prompt
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
    length = lambda number: len(chat_prompt(params, questions[number])[0])
    order = sorted(range(len(questions)), key=length)
    found = [""] * len(questions)
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        asked = [questions[number] for number in [*part, *part[-1:] * (ROWS - len(part))]]
        replies, _ = chat(
            params, asked, sampling=sampling, max_new_tokens=LONGEST, seed=range(ROWS)
        )
        for number, reply in zip(part, replies, strict=False):
            found[number] = reply
    return found
