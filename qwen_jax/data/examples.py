"""A record as token ids and labels."""

import numpy as np

from qwen_jax.data import LossOn
from qwen_jax.data.formats import Conversation, Document, Pair, Record
from qwen_jax.text.chatml import IM_END, IM_START
from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.transcript import Part, transcript

IGNORED = -100  # the label of a token that is not learnt
LEARNT = {"turns": ("control", "answer"), "assistant": ("answer",)}


def encode(
    record: Record, tokenizer: Tokenizer, system: str | None = None, loss_on: LossOn = "turns"
) -> tuple[np.ndarray, np.ndarray]:
    """The ids and labels of a whole record, int32; a label is the token's own id, or IGNORED.

    system: for conversations that bring none; None is what the checkpoint's chat template does, or
        without one v1's default.
    loss_on: "turns" learns what the original does: answers, and the control tokens around every
        turn; "assistant" learns answers alone, each up to its <|im_end|> and newline. Of a document
        everything is learnt, of a pair its completion, and <|endoftext|> behind them.
    Raises ValueError for what the chat template, or v1 without one, cannot express.
    """
    if isinstance(record, Document):
        ids = np.array([*tokenizer.encode(record.text), tokenizer.end_of_text], np.int32)
        return ids, ids
    if isinstance(record, Pair):
        whole = tokenizer.encode(record.prompt + record.completion)
        ids = np.array([*whole, tokenizer.end_of_text], np.int32)
        given = len(tokenizer.encode(record.prompt))
        return ids, np.where(np.arange(len(ids)) < given, np.int32(IGNORED), ids)
    messages = record.messages
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    parts = transcript(tokenizer, messages, record.tools)
    ids = np.array([id for _, part in parts for id in part], np.int32)
    learnt = np.repeat(_learnt(record, parts, loss_on), [len(p) for _, p in parts])
    return ids, np.where(learnt, ids, np.int32(IGNORED))


def _learnt(record: Conversation, parts: list[Part], loss_on: LossOn) -> list[bool]:
    """Which parts are: an answer is followed by another kind of part before the next one."""
    made, number, before = list[bool](), -1, ""
    for who, _ in parts:
        number += who == "answer" != before
        before = who
        wanted = not (record.learnt and who == "answer") or record.learnt[number]
        begun = not record.prompt or any(record.learnt[: number + 1])
        made.append(who in LEARNT[loss_on] and wanted and begun)
    return made


def answered(ids: np.ndarray, labels: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens are learnt and say something, bool: no control token, nor what follows its end.

    So a conversation without answers has none, though the marks around its turns may be learnt.
    """
    start, end = (tokenizer.specials.get(name, -1) for name in (IM_START, IM_END))
    behind = np.append(False, ids[:-1] == end)
    return (labels != IGNORED) & (ids != start) & (ids != end) & ~behind
