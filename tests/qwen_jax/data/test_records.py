"""Data files and folders as one list of records, and hostile ones as faults."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qwen_jax.data.formats import Conversation, Document, Pair
from qwen_jax.data.records import Records
from tests.qwen_jax.conftest import Data

HI = {"messages": [{"role": "user", "content": "hi"}]}


def test_files_follow_one_another(data: Data) -> None:
    first = data("b.jsonl", b'\n{"text": "one"}\n\n{"text": "two"}\n')
    second, third = data("a.json", HI, HI), data("novel.txt", b"three\n")
    records = Records([first, second, third])
    assert [records[n] for n in (0, 1, 4)] == [Document(t) for t in ("one", "two", "three\n")]
    assert records[3] == Conversation(HI["messages"])
    assert [records.name(n) for n in range(len(records))] == [
        f"{first}:2",
        f"{first}:4",
        f"{second}[0]",
        f"{second}[1]",
        f"{third}",
    ]
    assert records.where(3) == f"{second}[1] (line 10)"
    assert records.where(1) == records.name(1)
    assert records.documents.tolist() == [True, True, False, False, True]
    for number in (-1, 5):
        with pytest.raises(IndexError):
            records[number]


def test_a_folder_is_its_data_files_by_name(data: Data, tmp_path: Path) -> None:
    (tmp_path / "b" / ".git").mkdir(parents=True)
    for name in ("b/z.txt", "b/README.md", "b/.hidden.json", "b/.git/x.txt", "a.txt", "LICENSE"):
        data(name, name.encode())
    records: Any = Records(tmp_path)
    assert [records[n].text for n in range(len(records))] == ["a.txt", "b/z.txt"]
    assert not records.problems.count


def test_every_file_with_a_fault_is_named(data: Data, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bad, good = data("x.csv", b"1"), data("x.txt", b"x")
    records = Records([tmp_path / "none.json", bad, good, tmp_path / "empty"])
    assert records.problems.shown == [
        f"{tmp_path}/none.json: No such file or directory",
        f"{bad}: got a name in '.csv', wanted .json, .jsonl, .txt",
        f"{tmp_path}/empty: no data in this folder, wanted .json, .jsonl, .txt",
    ]
    assert len(records) == 1


def test_a_record_of_another_format_is_a_fault(data: Data) -> None:
    records = Records(data("x.jsonl", HI, {"text": "x"}, HI))
    assert records[2]
    with pytest.raises(ValueError, match="got 'text' in a file that begins with 'messages'"):
        records[1]


def test_a_first_record_with_a_fault_does_not_condemn_the_rest(data: Data) -> None:
    records = Records(data("x.jsonl", b"{\n", b'{"text": "x"}\n'))
    assert records[1] == Document("x")
    with pytest.raises(ValueError, match="not JSON at character 1"):
        records[0]


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_bytes_that_are_not_utf8_are_counted_from_the_start_of_the_file(
    data: Data, name: str
) -> None:
    raw = b'{"text": "a"}\n{"text": "\xff"}'
    records = Records(data(name, raw))
    with pytest.raises(ValueError, match=f"byte {raw.index(0xFF)} of the file is not UTF-8"):
        records[len(records) - 1]


openings = [b'{"conversations":', b'{"messages":[{"role":"user",', b'{"text":"', b"[", b"\n", b'"']
endings = [b"]", b"}", b'"x"}]}\n', b",", b":", b'"from"', b'"value"', b'"content":"x"', b"null"]
oddities = [b"\\ud800", b"\0", b"\xff", b"\xef\xbb\xbf", b"9" * 5000, b"[" * 3000, b"1e999", b"NaN"]
tokens = st.sampled_from([*openings, *endings, *oddities])


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=st.lists(tokens, max_size=12).map(b"".join), name=st.sampled_from(["x.json", "x.txt"]))
@example(raw=b'[{"messages":' + b"[" * 900 + b"]" * 900 + b"}]", name="x.json")
def test_whatever_a_file_holds_is_records_or_faults(tmp_path: Path, raw: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(raw)
    records = Records(tmp_path / name)
    assert (len(records) > 0) != (records.problems.count > 0)
    for number in range(len(records)):
        try:
            wrong = ""
            assert isinstance(records[number], Document | Conversation | Pair)
        except ValueError as error:
            wrong = str(error)
        assert "\n" not in wrong
        assert len(wrong) < 400
