"""Where records lie: byte for byte, whatever is between them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_jax.data.index import index
from tests.qwen_jax.conftest import Data

quick = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes its own
)
items = st.dictionaries(st.text(max_size=4), st.text(max_size=9) | st.integers(), max_size=3)
blanks = st.text(" \t\r\n", max_size=3)
mark = st.sampled_from([b"", b"\xef\xbb\xbf"])


def spelled(item: dict[str, Any], ascii: bool) -> str:
    return json.dumps(item, ensure_ascii=ascii)


@quick
@given(data=st.data(), some=st.lists(items, min_size=1, max_size=5), mark=mark, ascii=st.booleans())
def test_items_of_a_list(
    tmp_path: Path, data: Any, some: list[Any], mark: bytes, ascii: bool
) -> None:
    gap = lambda: data.draw(blanks)
    text, lines = gap() + "[", []
    for number, item in enumerate(some):
        text += ("," if number else "") + gap()
        lines.append(text.count("\n") + 1)
        text += spelled(item, ascii) + gap()
    raw = mark + (text + "]" + gap()).encode()
    (tmp_path / "x.json").write_bytes(raw)
    found = index(tmp_path / "x.json")
    assert found.form == "list"
    assert [json.loads(raw[start:stop]) for start, stop, _ in found.spans] == some
    assert found.spans[:, 2].tolist() == lines


@quick
@given(data=st.data(), some=st.lists(items, min_size=1, max_size=5), mark=mark, last=st.booleans())
def test_lines(tmp_path: Path, data: Any, some: list[Any], mark: bytes, last: bool) -> None:
    text, lines = "", []
    for item in some:
        text += data.draw(blanks)
        lines.append(text.count("\n") + 1)
        text += spelled(item, ascii=False) + "\n"
    raw = mark + text.removesuffix("" if last else "\n").encode()
    (tmp_path / "x.json").write_bytes(raw)
    found = index(tmp_path / "x.json")
    assert found.form == "lines"
    assert [json.loads(raw[start:stop]) for start, stop, _ in found.spans] == some
    assert found.spans[:, 2].tolist() == lines


def test_a_text_is_one_record(data: Data) -> None:
    found = index(data("x.txt", b"\xef\xbb\xbf[not a list]\n{}\n"))
    assert (found.form, found.format, found.spans.tolist()) == ("text", "text", [[3, 19, 1]])


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize("format", ["conversations", "messages", "text"])
def test_the_first_record_tells_the_format(data: Data, name: str, format: str) -> None:
    assert index(data(name, {format: []}, {"other": []})).format == format


@pytest.mark.parametrize("first", [{"a": 1}, {"text": "", "messages": []}, 3])
def test_a_first_record_that_tells_nothing(data: Data, first: Any) -> None:
    assert index(data("x.jsonl", first)).format is None


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x.csv", b"a,b", "got a name in '.csv', wanted .json, .jsonl, .txt"),
        (
            "x.jsonl.gz",
            b"a",
            "got a name in '.gz', wanted .json, .jsonl, .txt; unpack it first: gunzip FILE",
        ),
        ("x.parquet", b"a", "Dataset.from_parquet(FILE), or from_file for .arrow, .to_json(NEW)"),
        (
            "x.json",
            b'{\n  "a": {\n}\n}\n',
            "the object of line 1 ends in line 4; wanted one object a line, or a list of them, "
            "as in [{...}, {...}]",
        ),
        ("x.json", b"", "the file is empty"),
        ("x.txt", b"", "the file is empty"),
        ("x.json", b"\xef\xbb\xbf \n", "the file is empty"),
        ("x.txt", b" \n\n", "the file is empty"),
        ("x.json", "[{}]".encode("utf-16"), "got UTF-16, wanted UTF-8"),
        ("x.json", b"[]", "got an empty list, wanted records"),
        ("x.json", b'[{},\n{"a": }]', "line 2 is not JSON: Expecting value"),
        ("x.json", b"[{},\n{},\n]", "line 3 is not JSON: Expecting value"),
        ("x.json", b"[{}\n{}]", "line 2 is not JSON: Expecting ',' or ']'"),
        ("x.json", b"[{},\n{}", "line 2 is not JSON: Expecting ',' or ']'"),
        ("x.json", b"[{}]\n\n{}", "line 3 is not JSON: Something behind the list"),
        ("x.json", b'[{"a": "\xff"}]', "byte 8 is not UTF-8"),
        ("x.json", b"[{},\n" + b"[" * 100_000, "behind line 1 is nested too deeply"),
    ],
)
def test_a_file_without_records_is_a_fault(data: Data, name: str, raw: bytes, message: str) -> None:
    with pytest.raises(ValueError) as error:
        index(data(name, raw))
    assert str(error.value).endswith(message)
