"""A record as token ids and labels."""

from typing import Literal

import numpy as np

from qwen_jax.data.formats import Document, Record
from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.transcript import transcript

IGNORED = -100  # the label of a token that is not learnt
LossOn = Literal["turns", "assistant"]
LEARNT = {"turns": ("control", "answer"), "assistant": ("answer",)}


def encode(
    record: Record, tokenizer: Tokenizer, system: str | None = None, loss_on: LossOn = "turns"
) -> tuple[np.ndarray, np.ndarray]:
    """The ids and labels of a whole record, int32; a label is the token's own id, or IGNORED.

    system: for conversations that bring none; None is what the checkpoint's chat template does, or
        without one v1's default.
    loss_on: "turns" learns what the original does: answers, and the control tokens around every
        turn; "assistant" learns answers alone, each up to its <|im_end|> and newline. Of a document
        everything is learnt, and <|endoftext|> behind it.
    Raises ValueError for what the chat template, or v1 without one, cannot express.
    """
    if isinstance(record, Document):
        ids = np.array([*tokenizer.encode(record.text), tokenizer.end_of_text], np.int32)
        return ids, ids
    messages = record.messages
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    parts = transcript(tokenizer, messages, record.tools)
    ids = np.array([id for _, part in parts for id in part], np.int32)
    learnt = np.repeat([who in LEARNT[loss_on] for who, _ in parts], [len(p) for _, p in parts])
    return ids, np.where(learnt, ids, np.int32(IGNORED))
