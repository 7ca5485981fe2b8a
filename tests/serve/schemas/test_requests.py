"""No field of a request is accepted and then forgotten."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jax
import numpy as np
import pytest

from serve.engine.operations import Prefill
from serve.schemas import fields, unasked
from tests.patience import until
from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import CHAT, fault
from tests.serve.schemas.formats import FORMATS
from tests.serve.text.test_grammar import CALL, NOW, ODD
from tests.serve.text.test_tools import TIME, TOOLS, WEATHER

TEMPLATE = (
    "{{ tools | tojson }}{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.name }}{{ m.reasoning_content }}"
    "{{ m.tool_call_id }}\n{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BEFORE = [{"role": "user", "content": "hi"}]
WORDS = {"model": "tiny", "messages": BEFORE, "seed": 1}
USED: dict[str, Any] = {"role": "assistant", "content": "so"}
ANSWERED = {"role": "tool", "content": "4", "tool_call_id": "a"}
ASKED = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
NAMED = {"type": "function", "function": {"name": "time"}}
GRAMMAR = {"type": "grammar", "grammar": 'start: "a"'}
PARTS = [{"type": "text", "text": "hi"}]
SCHEMA = {"name": "x", "schema": ODD, "strict": False}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, WORDS),
    "completion": ("/v1/completions", {"model": "tiny", "prompt": "hi", "seed": 1}),
    "tokenize": ("/tokenize", {"messages": WORDS["messages"]}),
    "text": ("/tokenize", {"prompt": "hi"}),
    "detokenize": ("/detokenize", {"tokens": [5]}),
    "parts": (CHAT, WORDS | {"messages": [{"role": "user", "content": PARTS}]}),
    "tools": (CHAT, WORDS | {"tools": TOOLS}),
    "functions": (CHAT, WORDS | {"functions": [WEATHER]}),
    "named": (CHAT, WORDS | {"tools": TOOLS, "tool_choice": NAMED}),
    "turns": (CHAT, WORDS | {"messages": [*BEFORE, USED, *BEFORE]}),
    "calls": (CHAT, WORDS | {"messages": [*BEFORE, USED | {"tool_calls": [ASKED]}, ANSWERED]}),
    "object": (CHAT, WORDS | {"response_format": {"type": "json_object"}}),
    "format": (CHAT, WORDS | {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}),
}  # fmt: skip

# field -> which body, which place in it, what is put there; then the server has to do otherwise
USED_FIELDS = {
    "SamplingFields.model": ("chat completion", "model", "other"),
    "Body.stream": ("chat completion", "stream", True),
    "SamplingFields.stream_options": ("chat", "stream_options", {"include_usage": True}),
    "SamplingFields.n": ("chat completion", "n", 2),
    "SamplingFields.max_tokens": ("chat completion", "max_tokens", 3),
    "SamplingFields.temperature": ("chat completion", "temperature", 0.5),
    "SamplingFields.top_p": ("chat completion", "top_p", 0.5),
    "SamplingFields.top_k": ("chat completion", "top_k", 3),
    "SamplingFields.min_p": ("chat completion", "min_p", 0.5),
    "SamplingFields.repetition_penalty": ("chat completion", "repetition_penalty", 1.5),
    "SamplingFields.presence_penalty": ("chat completion", "presence_penalty", 0.5),
    "SamplingFields.frequency_penalty": ("chat completion", "frequency_penalty", 0.5),
    "SamplingFields.logit_bias": ("chat completion", "logit_bias", {"5": 1}),
    "SamplingFields.min_tokens": ("chat completion", "min_tokens", 3),
    "SamplingFields.seed": ("chat completion", "seed", 2),
    "SamplingFields.stop": ("chat completion", "stop", "l"),
    "SamplingFields.stop_token_ids": ("chat completion", "stop_token_ids", [5]),
    "SamplingFields.ignore_eos": ("chat", "ignore_eos", True),
    "SamplingFields.include_stop_str_in_output": (
        "chat completion", "include_stop_str_in_output", True
    ),
    "SamplingFields.return_token_ids": ("chat completion", "return_token_ids", True),
    "StreamOptions.continuous_usage_stats": (
        "chat completion", "stream_options.continuous_usage_stats", True
    ),
    "StreamOptions.include_usage": ("chat completion", "stream_options.include_usage", True),
    "ChatRequest.messages": ("chat", "messages.0.content", "bye"),
    "ChatRequest.max_completion_tokens": ("chat", "max_completion_tokens", 3),
    "ChatRequest.logprobs": ("chat", "logprobs", True),
    "ChatRequest.top_logprobs": ("chat", "top_logprobs", 1),
    "ConversationFields.tools": ("chat tokenize", "tools", TOOLS),
    "ChatRequest.tool_choice": ("tools", "tool_choice", "none"),
    "ChatRequest.parallel_tool_calls": ("tools", "parallel_tool_calls", False),
    "ChatRequest.functions": ("chat", "functions", [TIME]),
    "ChatRequest.function_call": ("functions", "function_call", "none"),
    "ConversationFields.enable_thinking": ("chat tokenize", "enable_thinking", False),
    "ConversationFields.chat_template_kwargs": (
        "chat tokenize", "chat_template_kwargs", {"enable_thinking": True}
    ),
    "ConversationFields.reasoning_effort": ("chat", "reasoning_effort", "none"),
    "ConversationFields.add_generation_prompt": ("chat tokenize", "add_generation_prompt", False),
    "ConversationFields.continue_final_message": ("turns tokenize", "continue_final_message", True),
    "TemplateArguments.enable_thinking": ("chat", "chat_template_kwargs.enable_thinking", False),
    "Function.name": ("tools functions", "*function.name", "other"),
    "Function.description": ("tools functions", "*function.description", "other"),
    "Function.parameters": ("tools functions", "*function.parameters", {"type": "object"}),
    "Function.strict": ("tools functions", "*function.strict", True),
    "Function.name_for_model": ("tools functions", "*function.name_for_model", "other"),
    "Function.name_for_human": ("v1 functions", "*function.name_for_human", "other"),
    "Function.description_for_model": ("tools functions", "*function.description_for_model", "x"),
    "Tool.function": ("tools", "tools.0.function", TIME),
    "FunctionName.name": ("named", "tool_choice.function.name", "weather"),
    "ToolName.function": ("named", "tool_choice.function", {"name": "weather"}),
    "FunctionCall.name": ("calls", "messages.1.tool_calls.0.function.name", "g"),
    "FunctionCall.arguments": ("calls", "messages.1.tool_calls.0.function.arguments", "{1}"),
    "ToolCall.id": ("calls", "messages.1.tool_calls.0.id", "b"),
    "ToolCall.function": ("calls", "messages.1.tool_calls.0.function.name", "g"),
    "Message.role": ("chat turns tokenize", "messages.0.role", "system"),
    "TextPart.text": ("parts", "messages.0.content.0.text", "bye"),
    "Message.content": ("chat tokenize", "messages.0.content", [{"type": "text", "text": "a"}]),
    "Message.reasoning_content": ("turns", "messages.1.reasoning_content", "hm"),
    "Message.reasoning": ("turns", "messages.1.reasoning", "hm"),
    "Message.name": ("chat", "messages.0.name", "Ann"),
    "Message.function_call": ("turns", "messages.1.function_call", ASKED["function"]),
    "Message.tool_calls": ("turns", "messages.1.tool_calls", [ASKED]),
    "Message.tool_call_id": ("calls", "messages.2.tool_call_id", "b"),
    "CompletionRequest.prompt": ("completion", "prompt", "bye"),
    "CompletionRequest.logprobs": ("completion", "logprobs", 1),
    "CompletionRequest.suffix": ("completion", "suffix", "x"),
    "CompletionRequest.echo": ("completion", "echo", True),
    **FORMATS,
    "TokenizeRequest.model": ("tokenize", "model", "other"),
    "TokenizeRequest.prompt": ("text", "prompt", "bye"),
    "TokenizeRequest.messages": ("tokenize", "messages.0.content", "bye"),
    "TokenizeRequest.return_token_strs": ("tokenize text", "return_token_strs", True),
    "DetokenizeRequest.model": ("detokenize", "model", "other"),
    "DetokenizeRequest.tokens": ("detokenize", "tokens", [6]),
}  # fmt: skip
# What a field needs beside it, in both requests.
BESIDE: dict[str, Any] = {
    "SamplingFields.stream_options": {"stream": True},
    "SamplingFields.include_stop_str_in_output": {"stop": "l"},
    "StreamOptions.include_usage": {"stream": True, "stream_options": {}},
    "ChatRequest.top_logprobs": {"logprobs": True},
    "StreamOptions.continuous_usage_stats": {
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "ConversationFields.continue_final_message": {"add_generation_prompt": False},
    "TemplateArguments.enable_thinking": {"chat_template_kwargs": {}},
}
MAY_BE_REFUSED = ("ToolCall.id", "JsonSchema.strict", "CompletionRequest.suffix")
# The one value they may have is what happens anyway; any other is refused by name.
FIXED = {
    "Tool.type": ("tools", "tools.0.type", "retrieval"),
    "ToolName.type": ("named", "tool_choice.type", "custom"),
    "ToolCall.type": ("calls", "messages.1.tool_calls.0.type", "custom"),
    "TextPart.type": ("parts", "messages.0.content.0.type", "image_url"),
}
# Names for others; they ask for nothing.
LABELS = {
    "JsonSchema.name": ("format", "response_format.json_schema.name", "y"),
    "JsonSchema.description": ("format", "response_format.json_schema.description", "y"),
}


def kinds(kind: Any = fields.Fields) -> Any:
    return {one for child in kind.__subclasses__() for one in {child} | kinds(child)}


def fields_of(*modules: str) -> set[str]:
    """Every field that files of serve.schemas declare."""
    return {
        f"{kind.__name__}.{name}"
        for kind in kinds()
        for name in kind.model_fields.keys() & kind.__annotations__.keys()
        if kind.__module__.removeprefix("serve.schemas.") in modules
    }


ELSEWHERE = {"SamplingFields.priority", "SamplingFields.skip_special_tokens"}  # test_extensions


def test_every_field_is_in_a_table() -> None:
    known = fields_of("requests", "conversation", "formats")
    tables = USED_FIELDS.keys() | FIXED.keys() | LABELS.keys()
    assert known == tables | ELSEWHERE


@pytest.fixture(scope="module")
def servers(scripted: Serve) -> Iterator[dict[str, Running]]:
    said = f"Hello.\n{CALL}\n{NOW} Bye."
    with scripted(said, TEMPLATE) as modern, scripted(said, length=999) as original:
        yield {"modern": modern, "v1": original}


def put(body: Any, where: str, value: Any) -> Any:
    """A copy of body with a value at a place such as messages.0.role."""
    body = copy.deepcopy(body)
    if where.startswith("*function"):
        where = where.replace("*function", "tools.0.function" if "tools" in body else "functions.0")
    *path, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    inner = body
    for part in path:
        inner = inner[part]
    inner[last] = value
    return body


def seen(running: Running, path: str, body: Any) -> Any:
    """All that a request makes happen: what it asks of the device, and the answer."""
    device = running.script
    device.log.clear()
    answer = running.http.post(path, json=body)
    until(lambda: not running.model.engine.busy)
    asked = [
        ([*piece.before, *piece.tokens], piece.max_new_tokens, piece.mask, leaves(piece.settings))
        for prefill in device.log
        if isinstance(prefill, Prefill)
        for piece in prefill.pieces
    ]
    said = re.sub(_CHANCE, "", answer.text)
    return answer.status_code, asked, said


_CHANCE = r'(cmpl-|call_|toolu_|resp_|msg_|rs_|fc_)\w+|"\w*(created|(ed|diction)_tokens|_at)": ?\d+'


def leaves(settings: Any) -> Any:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(settings)]


def both(
    servers: dict[str, Running], field: str, table: Any, known: Any = BASES, beside: Any = BESIDE
) -> Iterator[Any]:
    """What happens without the field's new value, and with it."""
    bases, where, value = table[field]
    form = "v1" if "v1" in bases else "modern"
    for base in bases.removeprefix("v1 ").split():
        path, body = known[base]
        body = body | copy.deepcopy(beside.get(field, {}))
        before = seen(servers[form], path, body)
        assert before[0] == 200, before
        yield before, seen(servers[form], path, put(body, where, value))


@pytest.mark.parametrize("field", USED_FIELDS)
def test_fields_that_are_used(servers: dict[str, Running], field: str) -> None:
    for before, after in both(servers, field, USED_FIELDS):
        assert after[0] in (200, 404) or field in (
            "ToolCall.id",
            "JsonSchema.strict",
            "CompletionRequest.suffix",
        ), after
        assert before != after


@pytest.mark.parametrize("field", FIXED)
def test_fields_with_one_value(servers: dict[str, Running], field: str) -> None:
    bases, where, value = FIXED[field]
    path, body = BASES[bases]
    answer = httpx.post(servers["modern"].url + path, json=put(body, where, value))
    assert fault(answer, 400)["param"].startswith(where.split(".")[0])


@pytest.mark.parametrize("field", LABELS)
def test_fields_that_are_labels(servers: dict[str, Running], field: str) -> None:
    for before, after in both(servers, field, LABELS):
        assert before == after


# What other servers' clients send: the body, where, and what of it asks for nothing.
PLACES = {
    "chat completion": ("", unasked.LABELS, unasked.REQUEST),
    "turns": ("messages.1.", unasked.MESSAGE_LABELS, unasked.MESSAGE),
    "parts": ("messages.0.content.0.", unasked.PART_LABELS, unasked.PART),
    "calls": ("messages.1.tool_calls.0.", unasked.CALL_LABELS, {}),
    "tools": ("*function.", unasked.TOOL_LABELS, {}),
    "tokenize": ("", unasked.TOKENIZE_LABELS, unasked.TOKENIZE),
    "detokenize": ("", frozenset(), unasked.DETOKENIZE),
}


@pytest.mark.parametrize("bases", PLACES)
def test_what_asks_for_nothing(servers: dict[str, Running], bases: str) -> None:
    where, labels, idle = PLACES[bases]
    for base in bases.split():
        path, body = BASES[base]
        before = seen(servers["modern"], path, body)
        assert before[0] == 200, before
        before = seen(servers["modern"], path, body)  # once more: now the prompt is in a slot
        values = [(name, value) for name in labels for value in ("x", {"a": [1]}, None)]
        values += [(name, value) for name in idle for value in (None, *idle[name])]
        values.append(("unheard_of", None))
        for name, value in values:
            assert seen(servers["modern"], path, put(body, where + name, value)) == before, name


@pytest.mark.parametrize("name", sorted(unasked.REQUEST.keys() - {"tools", "functions", "stop"}))
def test_what_asks_for_something_is_named(servers: dict[str, Running], name: str) -> None:
    """Of another value; 1 is not true."""
    path, body = BASES["chat"]
    flag = isinstance(unasked.REQUEST[name][0], bool)
    for value in ({"a": 1}, 7, *([0, 1] if flag else [])):
        answer = httpx.post(servers["modern"].url + path, json=body | {name: value})
        assert fault(answer, 400, name)["param"] == name
