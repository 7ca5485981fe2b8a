"""Every record read and encoded once before training: how long it is, or what is wrong with it."""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from qwen_jax.data.formats import Record
from qwen_jax.data.records import Records, refuse
from qwen_jax.distributed import gather, share
from qwen_jax.files.problems import Problems
from qwen_jax.program import progress

CHUNK = 64  # records that a thread measures at a time

Encode = Callable[[Record], tuple[np.ndarray, np.ndarray]]
Answered = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids and labels to bool


@dataclass(frozen=True)
class Scan:
    """What is known of every record, int32 [records].

    sizes: tokens. firsts: the first token behind the start that is learnt and part of an answer, or
    the size. checks: as `check`. unread: fields of the data that mean nothing in their format.
    """

    sizes: np.ndarray
    firsts: np.ndarray
    checks: np.ndarray
    unread: tuple[str, ...]


@dataclass
class _Share:
    """What one process found."""

    rows: list[tuple[int, int, int]] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    unread: set[str] = field(default_factory=set)


def check(ids: np.ndarray, labels: np.ndarray) -> int:
    """An int32 that other ids or labels would change."""
    return int(np.uint32(zlib.crc32(labels.tobytes(), zlib.crc32(ids.tobytes()))).view(np.int32))


def scan(records: Records, encode: Encode, answered: Answered) -> Scan:
    """Raises ValueError for every fault of the data, in all processes if one of them finds any."""
    found, own = _Share(), share(len(records))
    with progress.working("reading the data", len(own), "records") as task:
        for part in _measured(records, encode, answered, own):
            found.rows += part.rows
            task.advance(len(part.rows) + part.problems.count)
            found.problems.join(part.problems)
            found.unread |= part.unread
    mine = {
        "digest": records.digest,
        "files": [records.problems.shown, records.problems.count],
        "records": [found.problems.shown, found.problems.count],
        "unread": sorted(found.unread),
    }
    everyone = [json.loads(text) for text in gather(json.dumps(mine).encode())]
    tables = gather(np.array(found.rows, np.int32).tobytes())
    shown, count = max((process["files"] for process in everyone), key=lambda files: files[1])
    problems = Problems(shown, count)
    for process in everyone:
        problems.join(Problems(*process["records"]))
    refuse(problems, "trained")
    if len({process["digest"] for process in everyone}) > 1:
        raise ValueError("the processes of this run see different data; give all of them the same")
    unread = sorted({name for process in everyone for name in process["unread"]})
    sizes, firsts, checks = np.frombuffer(b"".join(tables), np.int32).reshape(-1, 3).T
    return Scan(sizes, firsts, checks, tuple(unread))


def _measured(records: Records, encode: Encode, answered: Answered, own: range) -> Iterator[_Share]:
    chunks = [own[start : start + CHUNK] for start in range(0, len(own), CHUNK)]
    # threads are enough: the tokenizer lets go of Python's lock
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda chunk: _measure(records, encode, answered, chunk), chunks)


def _measure(records: Records, encode: Encode, answered: Answered, numbers: range) -> _Share:
    found = _Share()
    for number in numbers:
        with found.problems.catch(records.where(number)):
            record = records[number]
            ids, labels = encode(record)
            first = int(np.append(answered(ids, labels)[1:], True).argmax()) + 1
            found.rows.append((len(ids), first, check(ids, labels)))
            found.unread |= record.unread
    return found
