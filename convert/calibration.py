"""Text to calibrate and to judge a quantised model with: conversations, or plain text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qwen_jax import chatml
from qwen_jax.tokenizer import Tokenizer

LENGTH = 512  # tokens of a row
ROWS = 128
HELD = 16  # rows that judge and do not calibrate
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def read_rows(file: Path, tokenizer: Tokenizer | None) -> tuple[np.ndarray, np.ndarray]:
    """Token ids to calibrate with, [rows length], and to judge with.

    file: JSON, [{"conversations": [{"from": "user", "value": ...}, ...]}, ...] as for fine-tuning,
    or plain text. The texts are laid end to end and cut into rows. Raises ValueError.
    """
    if tokenizer is None:
        raise ValueError("the checkpoint has no tokenizer, which calibration texts need")
    ids = np.fromiter(_ids(file, tokenizer), np.int32)
    length = min(LENGTH, len(ids) // 8)
    if length < 16:
        raise ValueError(f"{file} has {len(ids)} tokens, calibration needs at least 128")
    rows = ids[: len(ids) // length * length].reshape(-1, length)[: ROWS + HELD]
    held = min(HELD, max(1, len(rows) // 8))
    return rows[held:], rows[:held]


def _ids(file: Path, tokenizer: Tokenizer) -> Iterator[int]:
    text = file.read_text("utf-8")
    if file.suffix != ".json":
        yield from tokenizer.encode(text)
        return
    try:
        records = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(records, list):
        raise ValueError(f"{file} holds a {type(records).__name__}, expected a list")
    for number, record in enumerate(records):
        try:
            yield from _conversation(record, tokenizer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}, record {number}: {error!r}") from None


def _conversation(record: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    """The prompt as the model would get it, and its last answer."""
    turns = [
        {"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]
    ]
    if turns and turns[0]["role"] == "assistant":
        turns = turns[1:]
    answer = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
    if system := record.get("system"):
        turns = [{"role": "system", "content": system}, *turns]
    end = [tokenizer.specials[chatml.IM_END], *tokenizer.encode("\n")]
    return [*chatml.render(tokenizer, turns), *tokenizer.encode(answer), *end]
