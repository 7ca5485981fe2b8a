"""Schemas that are not strict: whatever they hold, the rest of them is enforced."""

import re
from typing import Any

import pytest

from tests.serve.conftest import Serve
from tests.serve.text.test_tools import ASK, TEMPLATE

FOLLOWED = re.compile(r'\{\s*"a"\s*:\s*"[xy]"')
ODDITIES = [
    {"not": {"type": "string"}},
    {"type": "string", "pattern": "^(?=a)b"},
    {"type": "string", "pattern": "("},
    {"type": "nonsense"},
    {"type": {"a": "string"}},
    {"type": [{}]},
    {"type": "object", "properties": {"c": {}}, "required": [[], "c"]},
    {"$ref": "https://example.org/schema.json"},
    {"$ref": "#/$defs/none"},
    {"type": "integer", "minimum": "a"},
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"type": "object", "required": True},
    {"type": "string", "format": "uri-template"},
    {"enum": []},
]


@pytest.mark.parametrize("odd", ODDITIES, ids=str)
def test_what_is_not_strict_is_never_refused_for_a_keyword(scripted: Serve, odd: Any) -> None:
    """What stands beside the odd one is enforced all the same."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": odd},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    with scripted('{"a": "z"}', TEMPLATE) as running:
        ask = running.client().chat.completions.create
        said = ask(**ASK, response_format=wanted).choices[0].message.content
        assert FOLLOWED.match(said)
        (call,) = ask(**ASK, tools=[tool], tool_choice="required").choices[0].message.tool_calls
        assert FOLLOWED.match(call.function.arguments)


def test_a_format_nobody_defined_asks_for_nothing(scripted: Serve) -> None:
    """Not even of a strict schema; as a name of a property it is one."""
    schema = {
        "type": "object",
        "properties": {"format": {"type": "string", "format": "phone"}},
        "required": ["format"],
        "additionalProperties": False,
    }
    wanted = {"name": "n", "schema": schema, "strict": True}
    with scripted('{"format": "a"}') as running:
        made = running.client().chat.completions.create(
            **ASK, response_format={"type": "json_schema", "json_schema": wanted}
        )
        assert made.choices[0].message.content == '{"format": "a"}'


def test_an_answer_that_passes_a_limit_is_not_whole(scripted: Serve) -> None:
    """600 properties of which any may come next are more than the library follows."""
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(600)}}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    with scripted('{"p1": "x"}') as running:
        answer = running.client().chat.completions.create(**ASK, response_format=wanted)
        assert answer.choices[0].finish_reason == "length"
        running.settle()
