"""The official client."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tools.recite import first_turns

ASK: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Who are you?"}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of the next days in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Person(pydantic.BaseModel):
    name: Literal["Ann", "Bob"]
    grown: bool


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


def said(client: Any, **how: Any) -> Any:
    return client.chat.completions.create(**ASK | how).choices[0].message.content


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]


def test_chat(client: Any) -> None:
    """What the model was trained to say."""
    assert said(client, temperature=0) == dict(first_turns())["Who are you?"]


def test_stream(client: Any) -> None:
    options = {"include_usage": True}
    stream = client.chat.completions.create(**ASK, seed=1, stream=True, stream_options=options)
    *chunks, last = stream
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == said(client, seed=1)
    assert len([text for text in texts if text]) > 2
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens > 2


def test_stream_helper(client: Any) -> None:
    with client.chat.completions.stream(**ASK, seed=1) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        whole = stream.get_final_completion()
    assert "".join(texts) == whole.choices[0].message.content == said(client, seed=1)


def test_a_stream_that_is_left_frees_its_slot(client: Any, server: Any) -> None:
    options: dict[str, Any] = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    with client.chat.completions.create(**ASK, stream=True, **options) as stream:
        next(iter(stream))
    before = 'qwen_requests_finished_total{reason="cancelled"}'
    assert server.settled()[before] >= 1


def test_many_at_once(client: Any, server: Any) -> None:
    async def together() -> Any:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=server.key) as client:
            asked = [client.chat.completions.create(**ASK, seed=seed) for seed in range(16)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(together()) == [said(client, seed=seed) for seed in range(16)]


def call_of(message: Any) -> Any:
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Paris", "Rome")
    assert 1 <= arguments["days"] <= 9
    return call


CHOICES = ["required", {"type": "function", "function": {"name": "weather"}}]


@pytest.mark.parametrize("choice", CHOICES, ids=["required", "named"])
def test_tools(client: Any, choice: Any) -> None:
    """A call, and the answer after the function's own."""
    how = {"tools": [TOOL], "tool_choice": choice, "seed": 1, "max_tokens": 300}
    answer = client.chat.completions.create(**ASK | how)
    call = call_of(answer.choices[0].message)
    messages = [
        *ASK["messages"],
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    after = {"messages": messages, "tools": [TOOL], "max_tokens": 300}
    assert client.chat.completions.create(**ASK | after).choices[0].finish_reason


def test_tools_streamed(client: Any) -> None:
    how = {"tools": [TOOL], "tool_choice": "required", "seed": 1, "max_tokens": 300}
    with client.chat.completions.stream(**ASK | how) as stream:
        kinds = [event.type for event in stream]
        call_of(stream.get_final_completion().choices[0].message)
    assert kinds.count("tool_calls.function.arguments.delta") > 2
    assert kinds.count("tool_calls.function.arguments.done") == 1


def test_functions_of_the_first_api(client: Any) -> None:
    wanted = {"functions": [TOOL["function"]], "function_call": {"name": "weather"}}
    answer = client.chat.completions.create(**ASK, **wanted, max_tokens=300)
    assert answer.choices[0].message.function_call.name == "weather"
    assert answer.choices[0].finish_reason == "function_call"


def test_json_schema(client: Any) -> None:
    answer = client.chat.completions.parse(**ASK, response_format=Person, n=3, max_tokens=300)
    assert all(isinstance(choice.message.parsed, Person) for choice in answer.choices)


def test_json_object(client: Any) -> None:
    how = {"response_format": {"type": "json_object"}, "max_tokens": 60, "temperature": 2}
    answer = client.chat.completions.create(**ASK, **how, seed=1).choices[0]
    assert answer.message.content.lstrip().startswith("{")
    assert answer.finish_reason == "length" or json.loads(answer.message.content) is not None


def test_logprobs(client: Any) -> None:
    how = {"logprobs": True, "top_logprobs": 5, "temperature": 0}
    choice = client.chat.completions.create(**ASK, **how).choices[0]
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 5
        assert entry.logprob == max(one.logprob for one in entry.top_logprobs) <= 0
    spelled = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
    assert spelled.decode() == choice.message.content


def test_n_and_seed(client: Any) -> None:
    wild = {"temperature": 3.0, "top_p": 1.0, "max_tokens": 20}
    answer = client.chat.completions.create(**ASK, n=4, seed=5, **wild)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [said(client, seed=5 + place, **wild) for place in range(4)]
    assert len(set(texts)) == 4


def test_stop(client: Any) -> None:
    whole = said(client, temperature=0)
    word = whole.split()[3]
    assert said(client, temperature=0, stop=[word]) == whole[: whole.index(word)]
    stream = client.chat.completions.create(**ASK, temperature=0, stop=word, stream=True)
    texts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(texts) == whole[: whole.index(word)]


def test_completions(client: Any) -> None:
    ask = {"model": "demo", "prompt": "Hello! I am", "temperature": 0, "logprobs": 2}
    answer = client.completions.create(**ask, echo=True, max_tokens=6).choices[0]
    assert answer.text.startswith("Hello! I am")
    assert answer.logprobs.token_logprobs[0] is None
    assert "".join(answer.logprobs.tokens) == answer.text
    pieces = client.completions.create(**ask, max_tokens=6, stream=True)
    assert "Hello! I am" + "".join(piece.choices[0].text for piece in pieces) == answer.text


ERRORS = [
    (openai.BadRequestError, {"temperature": -1}, "temperature"),
    (openai.BadRequestError, {"max_tokens": 10**6}, "max_tokens"),
    (openai.BadRequestError, {"extra_body": {"best_of": 2}}, "best_of"),
    (openai.NotFoundError, {"model": "gpt-4"}, "model"),
    (openai.RateLimitError, {"n": 64}, None),
]


IDS = ["a value", "a length", "an unknown field", "a model", "a full queue"]


@pytest.mark.parametrize(("kind", "change", "field"), ERRORS, ids=IDS)
def test_errors(client: Any, kind: Any, change: Any, field: Any) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**ASK | change)
    assert caught.value.param == field
    assert caught.value.body["message"]
    if kind is openai.RateLimitError:
        assert int(caught.value.response.headers["retry-after"]) > 0


def test_a_wrong_key(server: Any) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError) as caught:
        said(client)
    assert caught.value.code == "invalid_api_key"
