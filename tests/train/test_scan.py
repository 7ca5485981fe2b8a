"""All data checked before training: every fault in one error, and what is known of each record."""

import threading
from typing import Any, NoReturn

import numpy as np
import pytest

from qwen_jax.data.examples import IGNORED, encode
from qwen_jax.data.formats import Record
from qwen_jax.data.records import Records
from qwen_jax.program import progress
from qwen_jax.text.tokenizer import Tokenizer
from tests.qwen_jax.conftest import Data
from train import scan as scanning
from train.scan import check, scan


def learnt(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return labels != IGNORED


def item(content: int | str = "hi", role: str = "user") -> dict[str, list[dict[str, Any]]]:
    return {"messages": [{"role": role, "content": content}]}


def test_faults_come_all_at_once_with_their_places(data: Data, small: Tokenizer) -> None:
    first = data("a.json", item(), item(role="bot"), {"messages": [7, 8]})
    second = data("b.jsonl", item(), item(3))
    records = Records([first, data("none.csv", b"x"), second])
    with pytest.raises(ValueError) as error:
        scan(records, lambda record: encode(record, small), learnt)
    heading, *lines = str(error.value).split("\n  ")
    assert heading == "5 faults in the data, nothing was trained:"
    assert [line.split(", wanted")[0] for line in lines] == [
        f"{data('none.csv', b'x')}: got a name in '.csv'",
        f"{first}[1] (line 10): messages[0].role: got 'bot'",
        f"{first}[2] (line 18): messages[0]: got a number",
        f"{first}[2] (line 18): messages[1]: got a number",
        f"{second}:2: messages[0].content: got a number",
    ]


def test_many_faults_are_counted(data: Data, small: Tokenizer) -> None:
    records = Records(data("x.jsonl", item(), *[item(3)] * 1000))
    with pytest.raises(ValueError) as error:
        scan(records, lambda record: encode(record, small), learnt)
    heading, *lines = str(error.value).split("\n  ")
    assert heading == "1000 faults in the data, nothing was trained:"
    assert [line.split(": ")[0].split(":")[-1] for line in lines[:-1]] == [*map(str, range(2, 22))]
    assert lines[-1] == "and 980 more"


def test_what_the_checkpoint_cannot_express_is_a_fault_of_the_data(
    data: Data, small: Tokenizer
) -> None:
    records = Records(data("x.jsonl", {"messages": item()["messages"], "tools": [{"name": "a"}]}))
    with pytest.raises(ValueError, match=r"x.jsonl:1: tools needs a chat template"):
        scan(records, lambda record: encode(record, small), learnt)


@pytest.mark.parametrize("error", [RecursionError(), OSError("no\ndisk"), ValueError("no\n such")])
def test_whatever_encoding_raises_is_one_line(data: Data, error: Any) -> None:
    def fail(record: Record) -> NoReturn:
        raise error

    with pytest.raises(ValueError, match=r"^1 fault in the data.*\n.*x.txt: n[^\n]*$"):
        scan(Records(data("x.txt", b"x")), fail, learnt)


def test_what_is_known_of_each_record(data: Data) -> None:
    labels = {"a": [1, -100, 3], "b": [5, -100, -100], "c": [-100, -100, -100, 4], "d": [2, 2]}
    tokens = lambda record: (np.arange(len(labels[record.text])), np.array(labels[record.text]))
    items = [{"text": name, "lang": 1} for name in labels]
    found = scan(Records(data("x.jsonl", *items * 100)), tokens, learnt)
    assert found.sizes.tolist() == [3, 3, 4, 2] * 100
    assert found.firsts.tolist() == [2, 3, 3, 1] * 100
    assert found.checks.reshape(100, 4).std(0).tolist() == [0] * 4
    assert len(set(found.checks.tolist())) == 4
    assert found.unread == ("lang",)


def test_the_check_sees_ids_and_labels() -> None:
    x, y = np.arange(3, dtype=np.int32), np.array([0, 1, -100], np.int32)
    assert len({check(x, x), check(x, y), check(y, x), check(y, y)}) == 4


def test_a_long_reading_tells_how_far_it_is(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = lambda record: (np.zeros(2, np.int32), np.zeros(2, np.int32))
    told: list[progress.Task] = []
    monkeypatch.setattr(progress, "_write", print)
    monkeypatch.setattr(progress.Task, "show", lambda task: told.append(task))
    scan(Records(data("x.jsonl", *[item()] * 100)), tokens, learnt)
    (task,) = told
    assert (task.what, task.done, task.unit) == ("reading the data", 100, "records")
    assert task.total == 100


def test_a_stop_does_not_wait_for_the_rest(data: Data) -> None:
    """Ctrl-C comes to the thread that waits; what is queued is dropped."""
    begun = []

    def slow(record: Record) -> tuple[np.ndarray, np.ndarray]:
        begun.append(record)
        threading.Event().wait(0.001)
        return np.zeros(2, np.int32), np.zeros(2, np.int32)

    records = Records(data("x.jsonl", *[item()] * 20_000))
    parts: Any = scanning._measured(records, slow, learnt, range(len(records)))
    next(parts)
    parts.close()
    assert len(begun) < 10_000
