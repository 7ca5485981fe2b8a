"""Function calls: the original's, word for word, and Hermes; whole and streaming alike."""

import dataclasses
import json
import random
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.text import hermes, react
from serve.text.message import Message
from tests.conftest import GOLDEN
from tests.serve.conftest import Serve

CASES = json.loads((GOLDEN / "text" / "react.json").read_text("utf-8"))
WEATHER = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Bonn", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TIME = {"name": "time", "description": "Now", "parameters": {"type": "object", "maxProperties": 0}}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, TIME)]
REACT = 'Thought: look.\nAction: weather\nAction Input: {"city": "Rome"}\nObservation: made up'
HERMES = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)
DEEP = "[" * 99999  # deeper than JSON is read
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HI = [{"role": "user", "content": "hi"}]
ASK: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 120}


def read(parser: Any, text: str, cuts: Any = ()) -> Message:
    """A message from text that comes in pieces."""
    message, ends = Message(), [*sorted(cuts), len(text)]
    for start, end in zip([0, *ends], ends, strict=False):
        message.add(parser.push(text[start:end]))
    message.add(parser.finish())
    return message


def calls_of(message: Message) -> list[Any]:
    return [dataclasses.asdict(message.calls[place]) for place in sorted(message.calls)]


# --- the original API, word for word -----------------------------------------------------------
@pytest.mark.parametrize(
    "case", CASES["parse_messages"], ids=lambda case: str(case["messages"])[:60]
)
def test_conversations(case: dict[str, Any]) -> None:
    ask = lambda: react.conversation(case["messages"], case["functions"] or ())
    if "error" in case or case.get("crashes"):
        with pytest.raises(ValueError, match="Invalid request") as caught:
            ask()
        assert str(caught.value).startswith(case.get("detail", ""))
        return
    got = ask()
    assert (got.query, got.system) == (case["query"], case["system"])
    assert got.history == [tuple(turn) for turn in case["history"]]
    assert case["complete_last"] == (got.query is None)


@pytest.mark.parametrize("case", CASES["parse_response"], ids=lambda case: case["response"][:30])
def test_responses(case: dict[str, Any]) -> None:
    for seed in range(50):
        chance = random.Random(seed)
        text = case["response"]
        cuts = {chance.randrange(len(text)) for _ in range(seed)}
        parser = react.ReactParser()
        message = read(parser, text, cuts)
        assert message.content == case["message"]["content"]
        call = case["message"]["function_call"]
        assert calls_of(message) == ([] if call is None else [call])
        assert bool(message.calls) == (case["finish_reason"] == "function_call")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            (
                "\nAction:|\nAction Input:|\nObservation:|\nFinal Answer: |Thought: |a| |\n|"
                "<tool|Action|"
                '<tool_call>|</tool_call>|{"name": "f", "arguments": {}}|{"name": 1}|'
                '<tool_call>{"name": "f"}</tool_call>|"</tool_call>"'
            ).split("|")
        ),
        max_size=9,
    ),
    st.sets(st.integers(0, 60), max_size=9),
    st.sampled_from([react.ReactParser, hermes.HermesParser]),
)
def test_pieces_change_nothing(parts: list[Any], cuts: set[Any], parser: type[Any]) -> None:
    text = "".join(parts)
    cuts = {min(cut, len(text)) for cut in cuts}
    assert read(parser(), text, cuts) == read(parser(), text)


@pytest.mark.parametrize(
    "function", [{"name": "f", "description": "none"}, {"name_for_model": "f"}]
)
def test_a_function_without_parameters_has_none(function: Any) -> None:
    """The original crashed."""
    query = react.conversation([{"role": "user", "content": "a"}], [function]).query or ""
    told = function.get("description", "")
    assert "\n\nf: Call this tool to interact with the f API. What" in query
    assert f"useful for? {told} Parameters: {{}}\n" in query


def test_calls_made_together_come_in_turn() -> None:
    call = lambda id, city: {
        "id": id,
        "type": "function",
        "function": {"name": "weather", "arguments": city},
    }
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "both", "tool_calls": [call("1", "a"), call("2", "b")]},
        {"role": "tool", "tool_call_id": "1", "content": "A"},
        {"role": "tool", "tool_call_id": "2", "content": "B"},
    ]
    said = react.conversation(react.parallel(messages), [WEATHER]).history[-1][1]
    assert said == (
        "Thought: both\nAction: weather\nAction Input: a\nObservation: A\n"
        "Thought: \nAction: weather\nAction Input: b\nObservation: B\nThought:"
    )
    with pytest.raises(ValueError, match="answers no call"):
        react.parallel([{"role": "tool", "tool_call_id": "9", "content": ""}])


# --- Hermes ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (HERMES, "Let me see.\n", [{"name": "weather", "arguments": '{"city": "Rome"}'}]),
        (HERMES + "\n" + HERMES[12:], "Let me see.\n", [{"name": "weather"}] * 2),
        ("no call", "no call", []),
        ("<tool_call>broken</tool_call>", "<tool_call>broken</tool_call>", []),
        ('<tool_call>{"name": "f"}', "", [{"name": "f", "arguments": "{}"}]),
        ("a <tool", "a <tool", []),
        ("<tool_call>{", "<tool_call>{", []),
        (
            r'<tool_call>{"name": "f\ud800", "arguments": {"a": "\ude00\ud83d\ude00"}}</tool_call>',
            "",
            [{"name": r"f\ud800", "arguments": r'{"a": "\ude00😀"}'}],
        ),
        (HERMES + "\n\nSo\n\nit is.\n", "Let me see.\nSo\n\nit is.", [{"name": "weather"}]),
        (f"<tool_call>{DEEP}", f"<tool_call>{DEEP}", []),
        (f"<tool_call>{DEEP}</tool_call>", f"<tool_call>{DEEP}</tool_call>", []),
        (
            HERMES.replace("Rome", "</tool_call>"),
            "Let me see.\n",
            [{"arguments": '{"city": "</tool_call>"}'}],
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_hermes(text: str, content: str, calls: list[Any]) -> None:
    message = read(hermes.HermesParser(), text)
    assert message.content == content
    made = calls_of(message)
    assert [call | wanted for call, wanted in zip(made, calls, strict=True)] == made


def test_what_only_looks_like_a_call_is_text() -> None:
    """A format beside functions may write it, and it may be cut."""
    for cut in (r'"\x", "arguments": {', '"\n", "arguments": '):
        text = f'<tool_call>{{"name": {cut}'
        message = read(hermes.HermesParser(followed=True), text)
        assert (message.content, message.calls) == (text, {})


# --- over HTTP ---------------------------------------------------------------------------------
def streamed(client: Any, **how: Any) -> tuple[list[tuple[str, str]], str, str | None]:
    """Name and arguments of the calls in a stream, its content, why it ended."""
    calls: dict[int, tuple[str, str]] = {}
    content, finish = "", None
    for chunk in client.chat.completions.create(**ASK, stream=True, **how):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
            if choice.delta.function_call:
                name, arguments = calls.get(0, ("", ""))
                call = choice.delta.function_call
                calls[0] = (name + (call.name or ""), arguments + (call.arguments or ""))
            for call in choice.delta.tool_calls or ():
                name, arguments = calls.get(call.index, ("", ""))
                assert bool(call.id) == (not name)
                function = call.function
                calls[call.index] = (name + (function.name or ""), arguments + function.arguments)
    return [calls[index] for index in sorted(calls)], content, finish


@pytest.mark.parametrize("form", ["v1", "hermes"])
def test_a_call(scripted: Serve, form: str) -> None:
    text, template = (REACT, None) if form == "v1" else (HERMES, TEMPLATE)
    with scripted(text, template) as running:
        client = running.client()
        (choice,) = client.chat.completions.create(**ASK, tools=TOOLS).choices
        (call,) = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rome"}')
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content.strip() == ("look." if form == "v1" else "Let me see.")
        got = streamed(client, tools=TOOLS)
        assert got[0] == [("weather", '{"city": "Rome"}')]
        assert got[1:] == (choice.message.content, "tool_calls")
        (choice,) = client.chat.completions.create(**ASK, functions=[WEATHER]).choices
        assert choice.message.function_call.name == "weather"
        assert choice.finish_reason == "function_call"
        assert streamed(client, functions=[WEATHER])[0] == [("weather", '{"city": "Rome"}')]
        none = client.chat.completions.create(**ASK, tools=TOOLS, tool_choice="none").choices[0]
        assert none.message.tool_calls is None
        assert none.message.content == text
        assert none.finish_reason == "stop"


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "time"}),
        ({"type": "function", "function": {"name": "time"}}, {"time"}),
    ],
)
def test_a_call_that_must_be(
    scripted: Serve,
    template: str | None,
    choice: str | dict[str, Any],
    names: set[str],
) -> None:
    """The model would rather talk; the grammar holds it to a call with arguments that fit."""
    with scripted("I would rather not.", template) as running:
        client = running.client()
        got = client.chat.completions.create(**ASK, tools=TOOLS, tool_choice=choice).choices[0]
        (call,) = got.message.tool_calls
        assert call.function.name in names
        arguments = json.loads(call.function.arguments)
        assert arguments == ({} if call.function.name == "time" else {"city": arguments["city"]})
        assert got.finish_reason == "tool_calls"
        ((name, given),), _, finish = streamed(client, tools=TOOLS, tool_choice=choice)
        assert (name, json.loads(given)) == (call.function.name, arguments)
        assert finish == "tool_calls"


def test_the_answer_to_a_call_goes_on(scripted: Serve) -> None:
    """The last reply is continued, as the original does; also as a stream, where it crashed."""
    with scripted(" I now know the final answer.\nFinal Answer: sunny") as running:
        client = running.client()
        call = {"name": "weather", "arguments": '{"city": "Rome"}'}
        messages = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "weather", "content": "sunny"},
        ]
        ask = ASK | {"messages": messages, "functions": [WEATHER], "max_tokens": 60}
        (choice,) = client.chat.completions.create(**ask).choices
        assert choice.message.content == "sunny"
        assert choice.finish_reason == "stop"
        stream = client.chat.completions.create(**ask, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in stream) == "sunny"


@pytest.mark.parametrize(
    "change",
    [
        {"tool_choice": "required"},
        {"tools": TOOLS, "functions": [WEATHER]},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [{"type": "function", "function": {"description": "nameless"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "code": "x"}}]},
        {"tools": [{"type": "retrieval"}]},
        {"tools": TOOLS * 65},
        {"messages": [{"role": "function", "content": "x"}, {"role": "user", "content": "y"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}, *ASK["messages"]]},
        {"messages": [{"role": "tool", "content": "x"}, *ASK["messages"]]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
    ],
    ids=lambda change: str(change)[:50],
)
def test_what_cannot_be_is_a_clear_400(scripted: Serve, change: dict[str, Any]) -> None:
    with scripted() as running, pytest.raises(openai.BadRequestError) as caught:
        running.client().chat.completions.create(**ASK | change)
    body: Any = caught.value.body
    assert body["message"]
    assert caught.value.type == "invalid_request_error"
