"""JSON of any origin: what the standard has, and a line about everything else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_jax.data.strict import decode

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(value=json_values)
def test_json_is_read(value):
    assert decode(json.dumps(value)) == value
    assert decode(json.dumps(value, ensure_ascii=True).encode()) == value


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
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    ],
)
def test_the_rest_is_refused(text, message):
    with pytest.raises(ValueError) as error:
        decode(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
