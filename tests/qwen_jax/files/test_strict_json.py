"""JSON of any origin: what the standard has, and a line about everything else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_jax.files.strict_json import LARGEST, decode, read

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(value=json_values)
def test_json_is_read(value: Any) -> None:
    assert decode(json.dumps(value)) == value
    assert decode(json.dumps(value, ensure_ascii=True).encode()) == value
    assert decode(json.dumps(value, ensure_ascii=False).encode("utf-8-sig")) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON at character 0: Expecting value"),
        ('{"a": 1', "not JSON at character 7: Expecting ',' delimiter"),
        ("{} {}", "not JSON at character 3: Extra data"),
        ('"\n"', "not JSON at character 1: Invalid control character"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "not JSON: 'c' twice in an object"),
        ("[NaN]", "not JSON: NaN"),
        ("-Infinity", "not JSON: -Infinity"),
        ("1e999", "not JSON: the number 1e999 is too large"),
        ("9" * 5000, "not JSON: a number of 5000 digits"),
        ("[" * 100_000, "JSON nested too deeply"),
        (b'{"a": "\xff"}', "not JSON: byte 7 is not UTF-8"),
    ],
)
def test_the_rest_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        decode(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_name_is_found_twice_among_many() -> None:
    names = [f'"{n}": 0' for n in range(200_000)]
    with pytest.raises(ValueError, match="'199999' twice in an object"):
        decode("{" + ", ".join([*names, names[-1]]) + "}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.json is not JSON at character 0"),
        (b"[1]", "x.json holds a list, expected a JSON object"),
        (b'{"a": 1, "a": 1}', "x.json is not JSON: 'a' twice in an object"),
        (b"[" * 100_000, "x.json is JSON nested too deeply"),
        (b"\xff", "x.json is not JSON: byte 0 is not UTF-8"),
    ],
)
def test_files_hold_one_object(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "x.json")


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(ValueError, match=f"has {LARGEST + 1} bytes, expected at most"):
        read(tmp_path / "x.json")
