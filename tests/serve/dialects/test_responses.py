"""/v1/responses through OpenAI's client, and its streams against a written-down grammar."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.serve.conftest import Running, Serve
from tests.serve.dialects.events import check_responses, sent
from tests.serve.raw_http import fault
from tests.serve.text.test_thinking import HYBRID, THOUGHT, TOLD
from tests.serve.text.test_tools import HERMES, TIME, WEATHER

URL = "/v1/responses"
TOOLS: Any = [{"type": "function", **function} for function in (WEATHER, TIME)]
ASK: Any = {"model": "tiny", "input": "hi"}
ANSWER = f'{THOUGHT}\n\n{HERMES}\n<tool_call>\n{{"name": "time"}}\n</tool_call>\nSo.'
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class Weather(BaseModel):
    city: str


@pytest.fixture(scope="module")
def thinker(scripted: Serve) -> Iterator[Running]:
    with scripted(ANSWER, HYBRID, length=1024) as running:
        yield running


@pytest.fixture(scope="module")
def plain(scripted: Serve) -> Iterator[Running]:
    with scripted('{"city": "Rome"}', HYBRID, length=1024) as running:
        yield running


def test_a_response(thinker: Running) -> None:
    made = thinker.client().responses.create(**ASK, tools=TOOLS, metadata={"a": "b"})
    thought, message, weather, time, rest = made.output
    assert thought.type == "reasoning"
    assert thought.content[0].text == TOLD
    assert (message.content[0].text, rest.content[0].text) == ("Let me see.\n", "So.")
    assert (weather.name, weather.arguments) == ("weather", '{"city": "Rome"}')
    assert (time.name, time.arguments) == ("time", "{}")
    assert (made.status, made.incomplete_details, made.error) == ("completed", None, None)
    assert made.metadata == {"a": "b"}
    assert [tool.name for tool in made.tools] == ["weather", "time"]
    assert 0 < made.usage.output_tokens_details.reasoning_tokens < made.usage.output_tokens
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    again = thinker.client().responses.create(**ASK, tools=TOOLS)
    assert again.usage.input_tokens_details.cached_tokens > 0


def test_a_stream_is_the_same_response(thinker: Running) -> None:
    include = ["reasoning.encrypted_content", "message.output_text.logprobs"]
    body = ASK | {"tools": TOOLS, "include": include}
    events = sent(thinker.url + URL, body)
    assert all(name == event["type"] for name, event in events)
    for _, event in events:
        EVENT.validate_python(event, strict=False)
    streamed = check_responses([event for _, event in events])
    whole = httpx.post(thinker.url + URL, json=body, timeout=60).json()
    Response.model_validate(whole)
    for made in (streamed, whole):
        assert made.pop("id").startswith("resp_")
        made.pop("created_at"), made.pop("completed_at"), made.pop("usage")
        for item in made["output"]:
            item.pop("id"), item.pop("call_id", None)
    assert streamed == whole
    with thinker.client().responses.stream(**ASK, tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "Let me see.\nSo."
    assert "response.function_call_arguments.done" in kinds


def test_a_namespace_of_functions(scripted: Serve) -> None:
    """As Codex sends them: the model sees both names in one, the client both apart."""
    space = {"type": "namespace", "name": "crm", "description": "All", "tools": TOOLS}
    said = HERMES.replace('"weather"', '"crm__weather"')
    with scripted(said, HYBRID, length=1024) as running:
        body = ASK | {"tools": [space]}
        made = httpx.post(running.url + URL, json=body, timeout=60).json()
        call = next(item for item in made["output"] if item["type"] == "function_call")
        assert (call["namespace"], call["name"]) == ("crm", "weather")
        assert [tool["name"] for tool in made["tools"][0]["tools"]] == ["weather", "time"]
        streamed = [event for _, event in sent(running.url + URL, body)]
        done = [e for e in streamed if e["type"] == "response.function_call_arguments.done"]
        assert [(e["namespace"], e["name"]) for e in done] == [("crm", "weather")]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        items = [{"role": "user", "content": "hi"}, call, output]
        assert httpx.post(running.url + URL, json=body | {"input": items}).status_code == 200


def test_log_probabilities_are_those_of_the_text(plain: Running, thinker: Running) -> None:
    include: Any = ["message.output_text.logprobs"]
    made = plain.client().responses.create(**ASK, include=include, top_logprobs=2)
    (part,) = made.output[0].content
    assert "".join(entry.token for entry in part.logprobs) == part.text
    assert {len(entry.top_logprobs) for entry in part.logprobs} == {1}  # a script knows no more
    made = thinker.client().responses.create(**ASK, tools=TOOLS, include=include)
    for item in made.output:
        if item.type == "message":
            told = b"".join(bytes(entry.bytes) for entry in item.content[0].logprobs).decode()
            assert item.content[0].text in told
            assert TOLD not in told
    assert plain.client().responses.create(**ASK).output[0].content[0].logprobs == []


def test_schemas(plain: Running) -> None:
    made = plain.client().responses.parse(**ASK, text_format=Weather)
    assert made.output_parsed == Weather(city="Rome")
    form = {"format": {"type": "json_object"}}
    assert json.loads(plain.client().responses.create(**ASK, text=form).output_text)


def test_what_is_cut_says_why(thinker: Running) -> None:
    thought = thinker.client().responses.create(**ASK).usage.output_tokens_details.reasoning_tokens
    for most, kinds in ((3, ["reasoning"]), (thought + 3, ["reasoning", "message"])):
        ask = ASK | {"max_output_tokens": most, "tools": TOOLS}
        made = check_responses([event for _, event in sent(thinker.url + URL, ask)])
        assert made["status"] == "incomplete"
        assert made["incomplete_details"] == {"reason": "max_output_tokens"}
        assert [item["type"] for item in made["output"]] == kinds
        assert [item["status"] for item in made["output"]][-1] == "incomplete"
        assert made["usage"]["output_tokens"] == most


def test_choosing_tools(thinker: Running) -> None:
    create = thinker.client().responses.create
    named: Any = {"type": "function", "name": "time"}
    for choice in (named, {"type": "allowed_tools", "mode": "required", "tools": [named]}):
        made = create(**ASK, tools=TOOLS, tool_choice=choice, reasoning={"effort": "none"})
        assert {item.name for item in made.output} == {"time"}
    one = create(**ASK, tools=TOOLS, parallel_tool_calls=False)
    assert [item.type for item in one.output] == ["reasoning", "message", "function_call"]
    free = create(**ASK, tools=TOOLS, tool_choice="none")
    assert {item.type for item in free.output} == {"reasoning", "message"}


def count(running: Running, **body: Any) -> int:
    """Tokens of a prompt."""
    made: Any = running.client().responses.create(**{"model": "tiny", **body})
    return int(made.usage.input_tokens)


def test_a_conversation_goes_on(thinker: Running) -> None:
    """By reference, item by item or sent whole; the prompt is the same."""
    client = thinker.client()
    include: Any = ["reasoning.encrypted_content"]
    first = client.responses.create(**ASK, tools=TOOLS, instructions="Be.", include=include)
    calls = [item for item in first.output if item.type == "function_call"]
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        for call in calls
    ]
    hi = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    items = [item.model_dump(exclude_none=True) for item in first.output]
    unread = [{k: v for k, v in item.items() if k != "content"} for item in items[:1]] + items[1:]
    named = [{"type": "item_reference", "id": item.id} for item in first.output]
    counts = {
        count(thinker, tools=TOOLS, instructions="Be.", **how)
        for how in (
            {"previous_response_id": first.id, "input": outputs},
            {"input": [hi, *items, *outputs]},
            {"input": [hi, *unread, *outputs]},
            {"input": [hi, *named, *outputs], "store": False},
            {"input": [hi, *map(dict, first.to_dict()["output"]), *outputs]},
        )
    }
    assert len(counts) == 1
    assert counts.pop() > first.usage.input_tokens
    second = client.responses.create(
        **ASK | {"input": outputs}, previous_response_id=first.id, tools=TOOLS
    )
    client.responses.delete(first.id)
    assert client.responses.create(**ASK, previous_response_id=second.id).status == "completed"


def test_cancelling(scripted: Serve) -> None:
    """One in progress ends with what it has; its slot is free."""
    with scripted("so " * 2000, HYBRID, seconds=0.02) as running:
        client = running.client()
        events = []
        for event in client.responses.create(**ASK, stream=True, max_output_tokens=2000):
            events.append(event.to_dict())
            if event.type == "response.output_text.delta" and len(events) < 9:
                id = events[0]["response"]["id"]
                assert client.responses.retrieve(id).status == "in_progress"
                if len(events) == 8:
                    assert client.responses.cancel(id).status == "cancelled"
        made = check_responses(events)
        assert (made["status"], made["incomplete_details"]) == ("cancelled", None)
        assert 0 < made["usage"]["output_tokens"] < 2000
        assert client.responses.retrieve(id).status == "cancelled"
        running.settle()


def test_who_leaves_is_forgotten(scripted: Serve) -> None:
    with scripted("so " * 2000, HYBRID, seconds=0.02) as running:
        with running.client().responses.create(**ASK, stream=True) as stream:
            id = next(iter(stream)).response.id
        running.settle()
        gone = threading.Event()
        for _ in range(100):
            if not running.service.underway:
                break
            gone.wait(0.05)
        assert not running.service.underway
        with pytest.raises(openai.NotFoundError):
            running.client().responses.retrieve(id)


def test_a_failure_is_an_event(scripted: Serve) -> None:
    with scripted("so " * 50, HYBRID, seconds=0.02) as running:
        events = []
        for event in running.client().responses.create(**ASK, stream=True):
            events.append(event.to_dict())
            if len(events) == 6:
                running.script.failures = 1
        made = events[-1]["response"]
        assert events[-1]["type"] == "response.failed"
        assert (made["status"], made["error"]["code"]) == ("failed", "server_error")


def test_truncation(scripted: Serve) -> None:
    """The oldest turns go, whole ones; never the instructions or the last."""
    with scripted(template=HYBRID, length=300) as running:
        turns = []
        for number in range(20):
            turns.append({"role": "user", "content": f"number {number} of all of them"})
            turns.append({"role": "assistant", "content": "well"})
        ask = {"input": turns[:-1], "instructions": "the dog", "max_output_tokens": 20}
        answer = httpx.post(running.url + URL, json={"model": "tiny", **ask})
        assert fault(answer, 400)["param"] == "input"
        fits = count(running, **ask, truncation="auto")
        assert fits <= 280
        for most in range(1, 20):  # the longest end of the conversation that fits
            left = {"input": turns[2 * most : -1], "truncation": "disabled"}
            answer = httpx.post(running.url + URL, json={"model": "tiny", **ask, **left})
            if answer.status_code == 200:
                assert answer.json()["usage"]["input_tokens"] == fits
                break
        with pytest.raises(openai.BadRequestError, match="300 fit"):
            count(running, input="a " * 900, truncation="auto")


@pytest.mark.parametrize(
    ("change", "param", "match"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0", "'web_search'"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools.0", "'file_search'"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice", "'mcp'"),
        ({"tool_choice": "required"}, None, "needs tools"),
        ({"input": [{"type": "computer_call"}]}, "input.0", "'computer_call'"),
        ({"input": []}, None, "an input"),
        ({"background": True}, "background", "not supported"),
        ({"include": ["everything"]}, "include.0", ""),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "not supported"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"max_tokens": 5}, "max_tokens", "not supported"),
        ({"max_output_tokens": 9999}, "max_output_tokens", "at most 1024 fit"),
        ({"temperature": 101}, "temperature", ""),
        ({"n": 2}, "n", ""),
        ({"metadata": {"a": 1}}, "metadata.a", ""),
        ({"reasoning": {"effort": "wild"}}, "reasoning.effort", ""),
    ],
)
def test_refusals_name_the_field(plain: Running, change: Any, param: Any, match: str) -> None:
    answer = httpx.post(plain.url + URL, json=ASK | change)
    assert fault(answer, 400, match)["param"] == param
