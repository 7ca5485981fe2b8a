"""One conversation, three dialects: the same prompt and the same answer, streamed or not."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.engine.operations import Prefill
from tests.serve.conftest import Running, Serve
from tests.serve.dialects.events import check_messages, check_responses, sent
from tests.serve.dialects.test_responses import ANSWER
from tests.serve.text.test_thinking import HYBRID
from tests.serve.text.test_tools import TIME, WEATHER

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
# tells apart whatever a template can
TEMPLATE = HYBRID.replace("{{ m.content }}", "{{ m.reasoning_content }}|{{ m.content }}")
SCHEMA = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}
LIMIT = 150
words = st.sampled_from(["hi", "a b", "the dog\n", "你好", "<|im_end|>", "{}"])
calls = st.lists(st.sampled_from([("weather", {"city": "Rome"}), ("time", {})]), max_size=2)
# an assistant's turn: what it thought, said and called; what is called is answered
turns = st.lists(st.tuples(words, st.none() | words, words, calls), max_size=2)
chosen = st.sampled_from([None, "auto", "none", "required", "weather"])


@pytest.fixture(scope="module")
def server(scripted: Serve) -> Iterator[Running]:
    with scripted(ANSWER, TEMPLATE, length=2048, chunk=2048) as running:
        yield running


def chat(said: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": said["system"]}] if said["system"] else []
    for question, thought, text, called in said["turns"]:
        messages.append({"role": "user", "content": question})
        answer: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            answer["reasoning_content"] = thought
        if called:
            answer["tool_calls"] = [
                {
                    "id": f"c{place}",
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps(arguments)},
                }
                for place, (name, arguments) in enumerate(called)
            ]
        messages.append(answer)
        for place, _ in enumerate(called):
            messages.append({"role": "tool", "tool_call_id": f"c{place}", "content": "4"})
    messages.append({"role": "user", "content": said["last"]})
    body: dict[str, Any] = {"messages": messages, "max_tokens": LIMIT}
    if said["tools"]:
        body["tools"] = [{"type": "function", "function": one} for one in (WEATHER, TIME)]
        choice = said["choice"]
        named = {"type": "function", "function": {"name": choice}}
        body["tool_choice"] = named if choice == "weather" else choice
        body["parallel_tool_calls"] = said["parallel"]
    if not said["thinking"]:
        body["enable_thinking"] = False
    if said["schema"]:
        form = {"name": "x", "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def responses(said: Any) -> dict[str, Any]:
    items: list[Any] = []
    for question, thought, text, called in said["turns"]:
        items.append({"role": "user", "content": question})
        if thought:
            part = {"type": "reasoning_text", "text": thought}
            items.append({"type": "reasoning", "summary": [], "content": [part]})
        part = {"type": "output_text", "text": text, "annotations": []}
        items.append({"type": "message", "role": "assistant", "content": [part]})
        for place, (name, arguments) in enumerate(called):
            call = {"type": "function_call", "call_id": f"c{place}", "name": name}
            items.append(call | {"arguments": json.dumps(arguments)})
        for place, _ in enumerate(called):
            items.append({"type": "function_call_output", "call_id": f"c{place}", "output": "4"})
    items.append({"role": "user", "content": [{"type": "input_text", "text": said["last"]}]})
    body: dict[str, Any] = {"input": items, "max_output_tokens": LIMIT}
    body["instructions"] = said["system"] or None
    if said["tools"]:
        body["tools"] = [{"type": "function", **one} for one in (WEATHER, TIME)]
        choice = said["choice"]
        named = {"type": "function", "name": choice}
        body["tool_choice"] = named if choice == "weather" else choice
        body["parallel_tool_calls"] = said["parallel"]
    if not said["thinking"]:
        body["reasoning"] = {"effort": "none"}
    if said["schema"]:
        body["text"] = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    return body


def messages(said: Any) -> dict[str, Any]:
    made: list[Any] = []
    for question, thought, text, called in said["turns"]:
        made.append({"role": "user", "content": question})
        blocks: list[Any] = []
        if thought:
            blocks.append({"type": "thinking", "thinking": thought, "signature": "x"})
        blocks.append({"type": "text", "text": text})
        results: list[Any] = []
        for place, (name, arguments) in enumerate(called):
            use = {"type": "tool_use", "id": f"c{place}", "name": name, "input": arguments}
            blocks.append(use)
            results.append({"type": "tool_result", "tool_use_id": f"c{place}", "content": "4"})
        made.append({"role": "assistant", "content": blocks})
        if results:
            made.append({"role": "user", "content": results})
    made.append({"role": "user", "content": said["last"]})
    body: dict[str, Any] = {"messages": made, "max_tokens": LIMIT}
    body["system"] = said["system"] or None
    if said["tools"]:
        body["tools"] = [
            {{"parameters": "input_schema"}.get(name, name): one[name] for name in one}
            for one in (WEATHER, TIME)
        ]
        kinds = {None: "auto", "required": "any", "weather": "tool"}
        choice = {"type": kinds.get(said["choice"], said["choice"])}
        if said["choice"] == "weather":
            choice["name"] = "weather"
        body["tool_choice"] = choice | {"disable_parallel_tool_use": not said["parallel"]}
    if not said["thinking"]:
        body["thinking"] = {"type": "disabled"}
    if said["schema"]:
        body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    return body


def of_chat(made: Any) -> Any:
    message = made["choices"][0]["message"]
    called = [call["function"] for call in message.get("tool_calls") or ()]
    return (
        message.get("reasoning_content", ""),
        message["content"] or "",
        [(call["name"], parsed(call["arguments"])) for call in called],
        made["usage"]["prompt_tokens"],
        made["usage"]["completion_tokens"],
    )


def parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return {"INVALID_JSON": arguments}


def of_responses(made: Any) -> Any:
    items = made["output"]
    texts = lambda kind: "".join(
        item["content"][0]["text"] for item in items if item["type"] == kind
    )
    called = [item for item in items if item["type"] == "function_call"]
    return (
        texts("reasoning"),
        texts("message"),
        [(call["name"], parsed(call["arguments"])) for call in called],
        made["usage"]["input_tokens"],
        made["usage"]["output_tokens"],
    )


def of_messages(made: Any) -> Any:
    texts = lambda kind: "".join(block.get(kind, "") for block in made["content"])
    called = [block for block in made["content"] if block["type"] == "tool_use"]
    usage = made["usage"]
    return (
        texts("thinking"),
        texts("text"),
        [(call["name"], call["input"]) for call in called],
        usage["input_tokens"] + usage["cache_read_input_tokens"],
        usage["output_tokens"],
    )


def prompt(running: Running) -> list[int]:
    """The ids that the device was last given, from the beginning."""
    *_, last = (op.pieces[-1] for op in running.script.log if isinstance(op, Prefill))
    return list(running.script.state[last.slot].heard[: last.prompt_length])


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.fixed_dictionaries(
        {
            "system": st.just("") | words,
            "turns": turns,
            "last": words,
            "tools": st.booleans(),
            "choice": chosen,
            "parallel": st.booleans(),
            "thinking": st.booleans(),
            "schema": st.booleans(),
        }
    )
)
def test_dialects_are_equal(server: Running, said: Any) -> None:
    found = []
    for path, body, read, check in (
        (CHAT, chat(said), of_chat, None),
        (RESPONSES, responses(said), of_responses, check_responses),
        (MESSAGES, messages(said), of_messages, check_messages),
    ):
        answer = httpx.post(server.url + path, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        found.append((prompt(server), read(answer.json())))
        if check is not None:
            events = [event for _, event in sent(server.url + path, body)]
            found.append((prompt(server), read(check(events))))
    assert all(one == found[0] for one in found), found
