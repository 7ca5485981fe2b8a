"""Clients of the other dialects, with their own defaults: Responses, Messages, generate."""

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import agents
import anthropic
import litellm
import openai
import pydantic
import pytest
from anthropic.types import RawMessageStreamEvent
from huggingface_hub import InferenceClient
from openai.types.responses import ResponseStreamEvent
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tools.recite import first_turns

QUESTION = "Who are you?"
ANSWER = dict(first_turns())[QUESTION]
ASK: dict[str, Any] = {"model": "demo", "input": QUESTION, "temperature": 0}
SAY: dict[str, Any] = {
    "model": "demo",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": QUESTION}],
    "extra_body": {"temperature": 0},  # the client has no name for it
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {"type": "function", "name": "weather", "parameters": SCHEMA}


class Person(pydantic.BaseModel):
    name: Literal["Ann", "Bob"]
    grown: bool


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: Any) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0) as client:
        yield client


def test_openai_create(client: Any) -> None:
    made = client.responses.create(**ASK)
    assert made.output_text == ANSWER
    again = client.responses.create(**ASK, previous_response_id=made.id)
    assert again.usage.input_tokens > made.usage.input_tokens
    assert client.responses.retrieve(made.id).output_text == ANSWER
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_openai_stream(client: Any) -> None:
    """Every event is one of the client's own types."""
    known: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
    with client.responses.stream(**ASK) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == ANSWER
    for event in client.responses.create(**ASK, stream=True):
        known.validate_python(event.to_dict())


def test_openai_parse_and_tools(client: Any) -> None:
    assert client.responses.parse(**ASK, text_format=Person).output_parsed.name in ("Ann", "Bob")
    made = client.responses.create(**ASK, tools=[FUNCTION], tool_choice="required")
    call = next(item for item in made.output if item.type == "function_call")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    how: Any = {"input": [output], "previous_response_id": made.id, "tools": [FUNCTION]}
    assert client.responses.create(**ASK | how).status == "completed"


def test_openai_agents(server: Any) -> None:
    """Its default is the Responses API."""
    calls: list[str] = []

    @agents.function_tool  # type: ignore[untyped-decorator, unused-ignore]
    def weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather in a city."""
        calls.append(city)
        return "sunny"

    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
            agents.set_default_openai_client(client, use_for_tracing=False)
            agents.set_tracing_disabled(True)
            agent = agents.Agent(
                name="guide",
                model="demo",
                tools=[weather],
                model_settings=agents.ModelSettings(temperature=0, tool_choice="required"),
            )
            return await agents.Runner.run(agent, QUESTION)

    assert asyncio.run(run()).final_output is not None
    assert calls


def test_pydantic_ai(server: Any) -> None:
    base: Any = OpenAIProvider(base_url=f"{server.url}/v1", api_key=server.key)
    key: Any = AnthropicProvider(base_url=server.url, api_key=server.key)
    # the client's own limit for Anthropic's API is longer than a small window
    how: Any = {"temperature": 0, "max_tokens": 100}
    responses = OpenAIResponsesModel("demo", provider=base)
    for model in (responses, AnthropicModel("demo", provider=key)):
        assert asyncio.run(Agent(model).run(QUESTION, model_settings=how)).output == ANSWER
    shaped = asyncio.run(Agent(responses, output_type=Person).run(QUESTION, model_settings=how))
    assert isinstance(shaped.output, Person)


def test_litellm(server: Any) -> None:
    how: Any = {"api_key": server.key, "model": "openai/demo", "api_base": f"{server.url}/v1"}
    made: Any = litellm.responses(input=QUESTION, temperature=0, **how)
    assert made.output[-1].content[0].text == ANSWER
    how |= {"model": "anthropic/demo", "api_base": server.url}
    said: Any = litellm.completion(messages=SAY["messages"], temperature=0, max_tokens=99, **how)
    assert said.choices[0].message.content == ANSWER


def test_anthropic_messages(claude: Any) -> None:
    made = claude.messages.create(**SAY)
    assert made.content[0].text == ANSWER
    assert made.stop_reason == "end_turn"
    count = claude.messages.count_tokens(model="demo", messages=SAY["messages"]).input_tokens
    assert count == made.usage.input_tokens + made.usage.cache_read_input_tokens
    tool = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match="web_search"):
        claude.messages.create(**SAY, tools=[tool])


def test_anthropic_stream(claude: Any) -> None:
    """Every event is one of the client's own types."""
    known: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RawMessageStreamEvent)
    with claude.messages.stream(**SAY) as stream:
        assert "".join(stream.text_stream) == ANSWER
        assert stream.get_final_message().content[0].text == ANSWER
    for event in claude.messages.create(**SAY, stream=True):
        known.validate_python(event.to_dict())


def test_anthropic_tools(claude: Any) -> None:
    tool = {"name": "weather", "description": "The weather", "input_schema": SCHEMA}
    ask = SAY | {"tools": [tool]}
    made = claude.messages.create(**ask, tool_choice={"type": "any"})
    use = next(block for block in made.content if block.type == "tool_use")
    assert use.input["city"] in ("Paris", "Rome")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    turns = [
        *SAY["messages"],
        {"role": "assistant", "content": made.content},
        {"role": "user", "content": [result]},
    ]
    assert claude.messages.create(**ask | {"messages": turns}).stop_reason


def test_hugging_face(server: Any) -> None:
    client = InferenceClient(server.url, token=server.key)
    text = client.text_generation("Once", max_new_tokens=8)
    assert "".join(client.text_generation("Once", max_new_tokens=8, stream=True)) == text
    details: Any = client.text_generation("Once", max_new_tokens=8, details=True)
    assert (details.generated_text, details.details.generated_tokens) == (text, 8)
