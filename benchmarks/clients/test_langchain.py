"""LangChain's ChatOpenAI. strict: schemas that allow nothing beside what they name."""

import asyncio
import functools
import operator
from typing import Any, Literal

import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

QUESTION = "Who are you?"


@tool  # type: ignore[untyped-decorator, unused-ignore]  # where langchain is not installed
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


class Person(pydantic.BaseModel):
    """Somebody."""

    name: Literal["Ann", "Bob"]
    grown: bool


@pytest.fixture(scope="module")
def chat(server: Any) -> Any:
    how = {"model": "demo", "temperature": 0, "max_retries": 0, "timeout": 60}
    return ChatOpenAI(base_url=f"{server.url}/v1", api_key=server.key, stream_usage=True, **how)


def test_an_answer(chat: Any) -> None:
    answer = chat.invoke([SystemMessage("You are a helpful assistant."), HumanMessage(QUESTION)])
    assert "qwen_jax" in answer.content
    assert answer.usage_metadata["output_tokens"] > 3
    assert answer.response_metadata["finish_reason"] == "stop"


def test_stream(chat: Any) -> None:
    chunks = list(chat.stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == chat.invoke(QUESTION).content
    assert len([chunk for chunk in chunks if chunk.content]) > 2
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata)


def test_stream_async(chat: Any) -> None:
    async def whole() -> Any:
        return "".join([chunk.content async for chunk in chat.astream(QUESTION)])

    assert asyncio.run(whole()) == chat.invoke(QUESTION).content


def test_batch(chat: Any) -> None:
    questions = [QUESTION, "How are you?", "你好"]
    answers = [answer.content for answer in chat.batch(questions)]
    assert answers == [chat.invoke(question).content for question in questions]


@pytest.mark.parametrize("choice", ["any", "weather"])
def test_a_tool_call(chat: Any, choice: Any) -> None:
    """Called, run, and its answer sent back."""
    bound = chat.bind_tools([weather], tool_choice=choice, strict=True)
    called = bound.invoke(QUESTION)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content.startswith("It is sunny in")
    assert bound.bind(tool_choice="auto").invoke([HumanMessage(QUESTION), called, result])


def test_a_tool_call_streamed(chat: Any) -> None:
    bound = chat.bind_tools([weather], tool_choice="any", strict=True)
    chunks = list(bound.stream(QUESTION))
    assert len(chunks) > 2
    (call,) = functools.reduce(operator.add, chunks).tool_calls
    assert call["name"] == "weather"
    assert call["args"]["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: Any, method: Any) -> None:
    bound = chat.with_structured_output(Person, method=method, strict=True)
    assert isinstance(bound.invoke(QUESTION), Person)


def test_logprobs(chat: Any) -> None:
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == answer.content
