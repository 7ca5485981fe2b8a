"""Samples: what training draws from the data, each short enough for a row."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import numpy as np

from qwen_jax.data import LossOn
from qwen_jax.data.examples import LEARNT, answered, encode
from qwen_jax.data.records import Paths, Records
from qwen_jax.text.tokenizer import Tokenizer
from train.scan import check, scan

KEPT = 1 << 26  # tokens of documents that stay in memory, 512 MiB with their labels
NAMED = 5  # samples that a notice names

Tokens = tuple[np.ndarray, np.ndarray]


class Samples:
    """Every sample of the data by number, as ids and labels of at most `length` tokens.

    A conversation that is longer loses its end, as in the original. A document is cut in samples
    that overlap by one token, so that each of its tokens but the first is learnt once. All data are
    read and checked here; afterwards a sample is read and encoded when it is asked for.

    use: what is done with the answers. lengths: of the samples, int32. digest: of all ids and
    labels. notices: lines for the user.
    Raises ValueError with every fault of the data, in all processes of a run if one finds any, and
    for data without an answer within the length.
    """

    def __init__(
        self,
        data: Paths,
        tokenizer: Tokenizer,
        *,
        length: int,
        system: str | None = None,
        loss_on: LossOn = "turns",
        use: Literal["learn", "measure"] = "learn",
    ):
        if length < 2:
            raise ValueError(f"got length {length}, wanted 2 tokens or more")
        if loss_on not in LEARNT:
            raise ValueError(f"got loss_on {loss_on!r}, wanted one of {', '.join(LEARNT)}")
        self.length = length
        self._records = Records(data)
        self._encode = lambda record: encode(record, tokenizer, system, loss_on)
        says = lambda ids, labels: answered(ids, labels, tokenizer)
        self._survey = found = scan(self._records, self._encode, says)
        documents = self._records.documents
        pieces = np.where(documents, -(-(found.sizes - 1) // (length - 1)), 1)
        self._record = np.repeat(np.arange(len(pieces)), pieces)
        self._piece = np.arange(len(self._record)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self._whole = pieces[self._record] == 1
        left = found.sizes[self._record] - self._piece * (length - 1)
        self.lengths = np.minimum(left, length).astype(np.int32)
        self.digest = hashlib.sha256(b"%d" % length + found.checks.tobytes()).hexdigest()[:16]
        self.notices = self._notices(documents, use)
        self._kept = _Kept(KEPT)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Tokens:
        record, piece = int(self._record[number]), int(self._piece[number])
        if self._whole[number]:
            ids, labels = self._read(record)
        else:
            ids, labels = self._kept.get(record, self._read)
        part = slice(piece * (self.length - 1), piece * (self.length - 1) + self.length)
        return ids[part], labels[part]

    def name(self, number: int) -> str:
        """Where the sample comes from: chats.jsonl:12, or novel.txt part 3, counted from 1."""
        name = self._records.name(int(self._record[number]))
        return name if self._whole[number] else f"{name} part {self._piece[number] + 1}"

    def _read(self, record: int) -> Tokens:
        ids, labels = self._encode(self._records[record])
        if check(ids, labels) != self._survey.checks[record]:
            raise ValueError(f"{self._records.name(record)} has changed since training began")
        return ids, labels

    def _notices(self, documents: np.ndarray, use: str) -> list[str]:
        sizes, firsts = self._survey.sizes, self._survey.firsts
        cut = self._named(~documents & (sizes > self.length), f"are cut at {self.length} tokens")
        lost = (firsts < sizes) & (firsts >= self.length)
        mute = firsts >= sizes
        without = [
            *self._named(lost, f"lose every answer at {self.length} tokens"),
            *self._named(mute, f"have no answer to {use} (none, an empty one, or weight 0)"),
        ]
        if (lost | mute).all():
            advice = "; raise --max-length" if lost.any() else ""
            raise ValueError(f"there is nothing to {use}: {'; '.join(without)}{advice}")
        notices = [*cut, *without]
        if unread := self._survey.unread:
            notices.append(f"fields of the data that are not read: {', '.join(unread)}")
        return notices

    def _named(self, flags: np.ndarray, what: str) -> list[str]:
        """A line on the records of which this is so, with the first of their names; or no line."""
        numbers = np.flatnonzero(flags)
        if not len(numbers):
            return []
        names = ", ".join(map(self._records.name, numbers[:NAMED].tolist()))
        more = ", …" if len(numbers) > NAMED else ""
        return [f"{len(numbers)} of {len(flags)} records {what}: {names}{more}"]


class _Kept:
    """The latest documents, because many samples are cut from each."""

    def __init__(self, room: int):
        self._room, self._lock = room, threading.Lock()
        self._tokens: OrderedDict[int, Tokens] = OrderedDict()

    def get(self, record: int, read: Callable[[int], Tokens]) -> Tokens:
        with self._lock:
            if record in self._tokens:
                self._tokens.move_to_end(record)
                return self._tokens[record]
        tokens = read(record)
        with self._lock:
            if record not in self._tokens:
                self._room -= len(tokens[0])
            self._tokens[record] = tokens
            while self._room < 0 and len(self._tokens) > 1:
                self._room += len(self._tokens.popitem(last=False)[1][0])
        return tokens
