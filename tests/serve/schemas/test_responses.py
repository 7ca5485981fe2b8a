"""No field of a request for a response is accepted and then forgotten."""

from typing import Any

import httpx
import pytest

from serve.schemas import unasked
from tests.serve.conftest import Running
from tests.serve.raw_http import fault
from tests.serve.schemas.test_requests import (
    BESIDE,
    USED_FIELDS,
    both,
    fields_of,
    put,
    seen,
    servers,  # noqa: F401
)
from tests.serve.text.test_grammar import ODD
from tests.serve.text.test_tools import TIME, WEATHER

URL = "/v1/responses"
TOOLS = [{"type": "function", **function} for function in (WEATHER, TIME)]
HI = {"type": "message", "role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": "4"}
PART = {"type": "reasoning_text", "text": "hm"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [PART]}
BARE = {"type": "reasoning", "summary": []}
NAMED = {"type": "function", "name": "time"}
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [NAMED]}
FORM = {"type": "json_schema", "name": "x", "schema": ODD, "strict": False}
WORDS: Any = {"model": "tiny", "input": "hi", "seed": 1, "max_output_tokens": 200}
BASES: Any = {
    "text": (URL, WORDS),
    "items": (URL, WORDS | {"input": [HI, THOUGHT, CALL, OUTPUT]}),
    "unread": (URL, WORDS | {"input": [HI, BARE, CALL, OUTPUT]}),
    "tools": (URL, WORDS | {"tools": TOOLS}),
    "named": (URL, WORDS | {"tools": TOOLS, "tool_choice": NAMED}),
    "allowed": (URL, WORDS | {"tools": TOOLS, "tool_choice": ALLOWED}),
    "format": (URL, WORDS | {"text": {"format": FORM}}),
}
FIRST = "input.0."
USED = {
    "InputMessage.role": ("items", "input.0.role", "developer"),
    "InputMessage.content": ("items", "input.0.content", [{"type": "input_text", "text": "bye"}]),
    "CalledFunction.call_id": ("items", "input.2.call_id", "b"),
    "CallOutput.call_id": ("items", "input.3.call_id", "b"),
    "CallOutput.output": ("items", "input.3.output", "5"),
    "Thought.content": ("items", "input.1.content", [{"type": "reasoning_text", "text": "ah"}]),
    "Thought.summary": ("unread", "input.1.summary", [{"type": "summary_text", "text": "ah"}]),
    "Thought.encrypted_content": ("unread", "input.1.encrypted_content", "YWg="),
    "FunctionTool.name": ("tools", "tools.0.name", "other"),
    "FunctionTool.parameters": ("tools", "tools.0.parameters", {"type": "object"}),
    "NamedFunction.name": ("named", "tool_choice.name", "weather"),
    "AllowedTools.mode": ("allowed", "tool_choice.mode", "required"),
    "AllowedTools.tools": ("allowed", "tool_choice.tools.0.name", "weather"),
    "TextFormat.type": ("format", "text.format", {"type": "text"}),
    "TextFormat.schema_": ("format", "text.format.schema", {"type": "string"}),
    "TextFormat.strict": ("format", "text.format.strict", True),
    "TextOptions.format": ("text", "text", {"format": {"type": "json_object"}}),
    "Reasoning.effort": ("text", "reasoning", {"effort": "none"}),
    "ResponsesRequest.max_tokens": ("text", "max_output_tokens", 3),
    "ResponsesRequest.input": ("text", "input", "bye"),
    "ResponsesRequest.instructions": ("text", "instructions", "Be."),
    "ResponsesRequest.store": ("text", "store", False),
    "ResponsesRequest.metadata": ("text", "metadata", {"a": "b"}),
    "ResponsesRequest.include": ("text", "include", ["message.output_text.logprobs"]),
    "ResponsesRequest.reasoning": ("text", "reasoning", {"effort": "none"}),
    "ResponsesRequest.text": ("text", "text", {"format": {"type": "json_object"}}),
    "ResponsesRequest.tools": ("text", "tools", TOOLS),
    "ResponsesRequest.tool_choice": ("tools", "tool_choice", "none"),
    "ResponsesRequest.parallel_tool_calls": ("tools", "parallel_tool_calls", False),
    "ResponsesRequest.top_logprobs": ("text", "top_logprobs", 2),
    "ResponsesRequest.truncation": ("text", "truncation", "auto"),
}
# Another value is refused by the name of the field, or of what it is in.
FIXED = {
    "InputMessage.type": ("items", "input.0.type", "computer_call"),
    "CalledFunction.type": ("items", "input.2.type", "mcp_call"),
    "CallOutput.type": ("items", "input.3.type", "shell_call_output"),
    "Thought.type": ("items", "input.1.type", "compaction"),
    "FunctionTool.type": ("tools", "tools.0.type", "web_search"),
    "NamedFunction.type": ("named", "tool_choice.type", "custom"),
    "AllowedTools.type": ("allowed", "tool_choice.type", "mcp"),
    "PaddingOptions.include_usage": ("text", "stream_options", {"include_usage": True}),
    "PaddingOptions.continuous_usage_stats": (
        "text",
        "stream_options",
        {"continuous_usage_stats": True},
    ),
    "ResponsesRequest.stream_options": ("text", "stream_options", {"include_usage": True}),
    "ResponsesRequest.n": ("text", "n", 2),
}
LABELS = {
    "TextFormat.name": ("format", "text.format.name", "y"),
    "TextFormat.description": ("format", "text.format.description", "y"),
}
# in tests/serve/dialects/test_responses.py: what they name must have been answered before
REFERENCES = {"ItemReference.type", "ItemReference.id", "ResponsesRequest.previous_response_id"}


def test_every_field_is_in_a_table() -> None:
    tables = USED.keys() | FIXED.keys() | LABELS.keys() | REFERENCES
    assert fields_of("responses") == tables


@pytest.mark.parametrize("field", USED)
def test_fields_that_are_used(servers: dict[str, Running], field: str) -> None:  # noqa: F811
    for before, after in both(servers, field, USED, BASES):
        assert after[0] == 200 or field == "TextFormat.strict", after
        assert before != after


@pytest.mark.parametrize("field", FIXED)
def test_fields_with_one_value(servers: dict[str, Running], field: str) -> None:  # noqa: F811
    base, where, value = FIXED[field]
    path, body = BASES[base]
    answer = httpx.post(servers["modern"].url + path, json=put(body, where, value))
    assert fault(answer, 400)["param"].startswith(where.split(".")[0])


@pytest.mark.parametrize("field", LABELS)
def test_fields_that_are_labels(servers: dict[str, Running], field: str) -> None:  # noqa: F811
    for (_, *before), (_, *after) in both(servers, field, LABELS, BASES):
        assert before[0] == after[0]  # what the device is asked; the response shows the name


SAMPLING = {name for name in USED_FIELDS if name.startswith("SamplingFields.")}
OTHERWISE = {"max_tokens", "n", "stream_options"}  # have other names, or one value


@pytest.mark.parametrize("field", sorted(SAMPLING))
def test_tokens_are_chosen_as_in_a_chat(
    servers: dict[str, Running],  # noqa: F811
    field: str,
) -> None:
    _, where, value = USED_FIELDS[field]
    if where not in OTHERWISE:
        table = {field: ("text", where, value)}
        for before, after in both(servers, field, table, BASES, BESIDE):
            assert after[0] in (200, 404), after
            assert before != after


PLACES: Any = {
    "text": ("", unasked.RESPONSES_LABELS, unasked.RESPONSES.keys() - unasked.REQUEST.keys()),
    "items": (FIRST, unasked.ITEM_LABELS, unasked.ITEM),
    "tools": ("tools.0.", unasked.TOOL_LABELS, unasked.FUNCTION_TOOL),
}
IDLE = {**unasked.RESPONSES, **unasked.ITEM, **unasked.FUNCTION_TOOL}


@pytest.mark.parametrize("base", PLACES)
def test_what_asks_for_nothing(servers: dict[str, Running], base: str) -> None:  # noqa: F811
    where, labels, idle = PLACES[base]
    path, body = BASES[base]
    seen(servers["modern"], path, body)
    before = seen(servers["modern"], path, body)
    values = [(name, value) for name in labels for value in ("x", None)]
    values += [(name, value) for name in idle for value in (None, *IDLE[name])]
    for name, value in values:
        assert seen(servers["modern"], path, put(body, where + name, value)) == before, name
    for name in ("verbosity", "summary"):
        outer, inner = ("text", unasked.TEXT_OPTIONS), ("reasoning", unasked.REASONING)
        field, table = outer if name in outer[1] else inner
        (usual,) = table[name]
        asked = body | {field: {name: usual}}
        assert seen(servers["modern"], path, asked)[1] == before[1]
        answer = httpx.post(servers["modern"].url + path, json=body | {field: {name: "x"}})
        assert fault(answer, 400)["param"] == f"{field}.{name}"
