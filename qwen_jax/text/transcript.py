"""Whole conversations as a model learns them: token ids, and who wrote which of them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qwen_jax.text.chatml import DEFAULT_SYSTEM, IM_END, IM_START, checked, control, pieces
from qwen_jax.text.tokenizer import Tokenizer

ANSWER = "assistant\n"  # what follows <|im_start|> before an answer

Writer = Literal["text", "control", "answer"]
Part = tuple[Writer, list[int]]


def transcript(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[Part]:
    """The parts of a conversation in the OpenAI form; their ids one after another are its tokens.

    "answer" is what the assistant said, with the <|im_end|> and the newline that end it; "control"
    is every <|im_start|>, and what ends the other turns; "text" is the rest. With a chat template
    the ids are those of `chatml.render` without a generation prompt. Without one (v1) they are the
    original's for fine-tuning, where control tokens written in a message count.
    A template of another form than ChatML has no "control": "answer" is what it puts between what
    asks for an answer and the next turn. Raises ValueError for whatever it or v1 cannot express.
    """
    messages = [checked(message) for message in messages]
    if not messages:
        raise ValueError("got no messages, wanted at least one")
    if tokenizer.chat_template is None:
        return _without_template(tokenizer, messages, tools)
    asked = {"add_generation_prompt": False, **({"tools": tools} if tools else {})}
    if IM_START not in tokenizer.specials:
        return _by_turns(tokenizer, messages, asked)
    parts: list[Part] = []
    writer: Writer = "text"
    answers, before = 0, ""
    for piece, ids in pieces(tokenizer, messages, asked):
        if before == IM_START and piece.startswith(ANSWER):
            answers, writer = answers + 1, "answer"
            start = _tokens_of(tokenizer, ids, len(ANSWER))
            parts += [("text", ids[:start]), ("answer", ids[start:])]
        elif before == IM_END and piece == "\n":
            parts.append((parts[-1][0], ids))
        elif piece in (IM_START, IM_END):
            parts.append(("answer" if (piece, writer) == (IM_END, "answer") else "control", ids))
            writer = "text"
        else:
            parts.append((writer, ids))
        before = piece
    said = sum(message["role"] == "assistant" for message in messages)
    if answers != said:
        raise ValueError(
            f"got {answers} of {said} answers behind {IM_START + ANSWER!r} from this checkpoint's "
            "chat template; without that, what the assistant said cannot be told apart"
        )
    return parts


def _by_turns(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]
) -> list[Part]:
    """What a template adds for each answer, found by rendering the conversation up to it."""
    whole = pieces(tokenizer, messages, asked)
    parts: list[Part] = [("text", ids) for _, ids in whole]
    end = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = pieces(tokenizer, messages[:number], {**asked, "add_generation_prompt": True})
        kept = pieces(tokenizer, messages[:number], asked) if number else []
        start = _common(before, whole)
        after = pieces(tokenizer, messages[: number + 1], asked)
        if not max(end, len(kept)) <= start < len(after) or _common(after, whole) < len(after):
            raise ValueError(
                f"answer {number + 1} cannot be told apart in what this checkpoint's chat template "
                "makes: it writes earlier turns otherwise when more follow, or marks none of them"
            )
        end = len(after)
        parts[start:end] = [("answer", ids) for _, ids in whole[start:end]]
    return parts


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many pieces two renderings begin with alike."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in alike)


def _tokens_of(tokenizer: Tokenizer, ids: Sequence[int], size: int) -> int:
    """How many tokens the first `size` bytes take; the last may hold bytes behind them too."""
    ends = itertools.accumulate(len(tokenizer.token_bytes(id)) for id in ids)
    return next(count for count, end in enumerate(ends, 1) if end >= size)


def _without_template(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[Part]:
    """ChatML of each turn, every part of it encoded by itself, as the original does."""
    known = {"role", "content"}
    if more := sorted(set().union(*messages) - known | ({"tools"} if tools else set())):
        raise ValueError(f"{', '.join(more)} needs a chat template, and this checkpoint has none")
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    roles = [message["role"] for message in messages]
    if not {"user", "assistant"}.issuperset(roles[1:]):
        raise ValueError(
            f"got the roles {', '.join(roles)}; without a chat template it must be user and "
            "assistant, after at most one system"
        )
    (start, end), newline = control(tokenizer, IM_START, IM_END), tokenizer.encode("\n")
    parts: list[Part] = []
    for message in messages:
        answer = message["role"] == "assistant"
        parts += [
            ("control", [start]),
            ("text", tokenizer.encode(message["role"]) + newline),
            ("answer" if answer else "text", tokenizer.encode(message["content"], specials=True)),
            ("answer" if answer else "control", [end, *newline]),
        ]
    return parts
