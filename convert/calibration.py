"""Text to calibrate and to judge a quantised model with: what training reads, as it reads it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_jax.data.examples import IGNORED, encode
from qwen_jax.data.formats import Document, Record
from qwen_jax.data.records import Records, refuse
from qwen_jax.text.tokenizer import Tokenizer

LENGTH = 512  # tokens of a row, at most
ROWS = 144  # so long: of shorter ones there are more
HELD = 9  # one in so many judges and does not calibrate
_SHEET = 1024  # tokens of a sheet
_STEP = 128  # lengths are multiples, so that few programs are compiled

Row = tuple[np.ndarray, np.ndarray]  # ids, and which of them count in a perplexity


@dataclass(frozen=True)
class Sheet:
    """Rows of about one length: a conversation each, or a piece of a text."""

    ids: np.ndarray  # int32 [B T], padded behind
    lengths: np.ndarray  # int32 [B]
    judged: np.ndarray  # bool [B T]: of conversations the answers, of texts everything


def read_sheets(file: Path, tokenizer: Tokenizer | None) -> tuple[list[Sheet], list[Sheet]]:
    """What calibrates, and what judges.

    file: conversations or texts in any format that training reads. Records are drawn at random, the
    same ones every time, until there are ROWS * LENGTH tokens. Raises ValueError with every fault.
    """
    if tokenizer is None:
        raise ValueError("the checkpoint has no tokenizer, which calibration texts need")
    records = Records(file)
    for number in range(len(records)):
        with records.problems.catch(records.where(number)):
            records[number]
    refuse(records.problems, "quantised")
    rows, room = list[Row](), ROWS * LENGTH
    for number in np.random.default_rng(0).permutation(len(records)).tolist():
        if room <= 0:
            break
        with records.problems.catch(records.where(number)):
            more = list(_rows(records[number], tokenizer, room))
            rows, room = rows + more, room - sum(len(ids) for ids, _ in more)
    refuse(records.problems, "quantised")
    held = rows[::HELD]
    del rows[::HELD]
    if not rows or not any(judged[1:].any() for _, judged in held):
        raise ValueError(
            f"{file} is too short: it takes a text of more than {LENGTH} tokens, or two "
            "conversations with answers, because what judges must not calibrate"
        )
    return list(_sheets(rows)), list(_sheets(held))


def _rows(record: Record, tokenizer: Tokenizer, room: int) -> Iterator[Row]:
    """A conversation loses what is too long, a text is cut; of neither more than there is room."""
    ids, labels = encode(record, tokenizer, loss_on="assistant")
    end = room if isinstance(record, Document) else LENGTH
    for start in range(0, min(len(ids), end), LENGTH):
        part = slice(start, min(start + LENGTH, end))
        yield ids[part], labels[part] != IGNORED


def _sheets(rows: list[Row]) -> Iterator[Sheet]:
    rows = sorted(rows, key=lambda row: -len(row[0]))
    while rows:
        length = -(-len(rows[0][0]) // _STEP) * _STEP
        count = max(1, _SHEET // length)
        taken, rows = rows[:count], rows[count:]
        padded = lambda x, length=length: np.pad(x, (0, length - len(x)))
        ids, judged = (np.stack([padded(x) for x in part]) for part in zip(*taken, strict=True))
        yield Sheet(ids, np.array([len(ids) for ids, _ in taken], np.int32), judged)
