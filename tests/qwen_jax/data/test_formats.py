"""Items of every format to one form, and the fields that faults name."""

from typing import Any

import pytest

from qwen_jax.data.formats import Conversation, Document, parse
from qwen_jax.files.problems import Wrong

USER = {"from": "user", "value": "hi"}
HI = {"role": "user", "content": "hi"}
CALL = {"function": {"name": "f", "arguments": {"x": "1"}}}
TYPED = {"type": "function", **CALL}
WANTED = "wanted one of 'conversations', 'messages', 'instruction', 'prompt', 'text'"
TOOL = {"type": "function", "function": {"name": "f"}}


def conversations(*turns: dict[str, str], **fields: Any) -> Any:
    return parse({"conversations": list(turns), **fields}, "conversations")


def messages(*turns: dict[str, Any], **fields: Any) -> Any:
    return parse({"messages": list(turns), **fields}, "messages")


def test_the_original_format() -> None:
    answer = {"from": "assistant", "value": ""}
    got = conversations(USER, answer, id="identity_0")
    assert got == Conversation([HI, {"role": "assistant", "content": ""}])
    assert conversations(answer, USER, answer) == got  # one answer to nothing is dropped
    assert conversations(answer, USER).messages == [HI]
    system = {"role": "system", "content": "s"}
    assert conversations(answer, USER, system="s").messages == [system, HI]
    assert conversations(answer, answer, USER).messages == [got.messages[1], HI]


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("gpt", "assistant"), ("observation", "tool"), ("chatgpt", "assistant")],
)
def test_names_of_sharegpt(speaker: str, role: str) -> None:
    got = conversations(USER, {"from": speaker, "value": "x"}, {"from": "user", "value": "y"})
    assert got.messages[1] == {"role": role, "content": "x"}


def test_sharegpt_with_system_and_tools() -> None:
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": "1"}}'}
    called = {"role": "assistant", "content": "", "tool_calls": [TYPED]}
    system = {"role": "system", "content": "s"}
    wanted = Conversation([system, HI, called], [TOOL])
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    assert conversations(USER, call, system="s", tools=tools) == wanted
    assert conversations({"from": "system", "value": "s"}, USER, call, tools=[TOOL]) == wanted
    assert conversations(USER, system="", tools="") == Conversation([HI])
    several = {"from": "function_call", "value": f"[{call['value']}, {call['value']}]"}
    assert conversations(USER, several).messages[1]["tool_calls"] == [TYPED, TYPED]


def test_openai_messages() -> None:
    given = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": "1"}'}}
    ]}  # fmt: skip
    result = {"role": "tool", "content": "4", "tool_call_id": "a"}
    thought = {"role": "assistant", "content": "4", "reasoning_content": "so", "refusal": None}
    got = messages(HI, given, result, thought, tools=[TOOL])
    called = {"role": "assistant", "content": "", "tool_calls": [TYPED]}
    said = {"role": "assistant", "content": "4", "reasoning_content": "so"}
    assert got == Conversation([HI, called, result, said], [TOOL])
    assert messages(thought, HI).messages == [said, HI]  # nothing is dropped here


def test_fields_that_say_nothing_are_named() -> None:
    assert messages(HI, source="x", id=3).unread == {"source"}
    assert conversations(USER, lang="en", id="a").unread == {"lang"}
    assert parse({"text": "x", "meta": {}}, "text") == Document("x", frozenset({"meta"}))


@pytest.mark.parametrize(
    ("item", "lines"),
    [
        (3, ["got a number, wanted an object"]),
        (None, ["got null, wanted an object"]),
        ({}, [f"got no fields, {WANTED}"]),
        ({"text": None, "messages": None}, [f"got no fields, {WANTED}"]),
        ({"input_ids": [1]}, [f"got 'input_ids', {WANTED}"]),
        ({"messages": [], "text": ""}, [f"got 'messages', 'text', {WANTED}"]),
        (
            {"text": "x"},
            ["got 'text' in a file that begins with 'conversations'; wanted one format"],
        ),
    ],
)
def test_another_format_is_a_fault(item: Any, lines: list[str]) -> None:
    with pytest.raises(Wrong) as error:
        parse(item, "conversations")
    assert list(error.value.lines) == lines


def faults_of(name: str, turns: Any, **fields: Any) -> list[str]:
    with pytest.raises(Wrong) as error:
        parse({name: turns, **fields}, name)
    return list(error.value.lines)


def test_every_turn_with_a_fault_is_named() -> None:
    turns = [USER, {"from": "bot", "value": "x"}, 7, {"from": "gpt"}, {"value": "x"}]
    first, *rest = faults_of("conversations", turns)
    assert first.startswith("conversations[1].from: got 'bot', wanted one of user, human, assist")
    assert rest == [
        "conversations[2]: got a number, wanted an object",
        "conversations[3].value: got null, wanted text",
        "conversations[4].from: got null, wanted text",
    ]


@pytest.mark.parametrize(
    ("turns", "line"),
    [
        ({}, "conversations: got an object, wanted a list"),
        ([], "conversations: got an empty list, wanted at least one turn"),
        ([{"from": "gpt", "value": "x"}], "conversations: got no turn of a user's"),
        ([USER, {"from": "system", "value": "x"}], "conversations: got a system text behind"),
        ([{"from": "user", "value": ["x"]}], "conversations[0].value: got a list, wanted text"),
        ([{**USER, "loss": 0}], "conversations[0].loss: unknown field, wanted from, v"),
        (
            [{**USER, "weight": 1}],
            "conversations[0].weight: got 1, wanted 0: only answers",
        ),
        ([{"from": "user", "value": "a\0"}], "conversations[0].value: got a NUL character"),
        ([{"from": "user", "value": "\ud800"}], r"conversations[0].value: got \ud800, half of a"),
        ([{"from": "function_call", "value": "f()"}], "conversations[0].value: not JSON at char"),
        ([{"from": "function_call", "value": "[3]"}], "conversations[0].value.function: got a num"),
        (
            [{"from": "function_call", "value": '{"name": "f"}'}],
            "conversations[0].value.function.arguments: got null, wanted an object",
        ),
    ],
)
def test_faults_of_conversations(turns: Any, line: str) -> None:
    assert faults_of("conversations", turns)[0].startswith(line)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("hi", "messages[0]: got text, wanted an object"),
        ({"role": "critic", "content": "x"}, "messages[0].role: got 'critic', wanted one of u"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text: got null"),
        ({"role": "user", "content": [{"type": "image"}]}, "messages[0].content[0].type: got 'ima"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]: got text, wanted an object"),
        ({"role": "user", "content": None}, "messages[0].content: got null, wanted text"),
        ({"role": "assistant"}, "messages[0].content: got null, wanted text"),
        ({"role": "assistant", "content": "x", "weight": 2}, "messages[0].weight: got 2, wanted"),
        ({"role": "assistant", "content": "x", "weight": True}, "messages[0].weight: got True"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[0].tool_calls: unknown"),
        ({"role": "assistant", "tool_calls": CALL}, "messages[0].tool_calls: got an object, wan"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].function: got null"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0].function.arguments: not JSON at character 1",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "", "arguments": ["x"]}}]},
            "messages[0].tool_calls[0].function.arguments: got a list, wanted an object",
        ),
    ],
)  # fmt: skip
def test_faults_of_messages(message: Any, line: str) -> None:
    assert faults_of("messages", [message, HI])[0].startswith(line)


@pytest.mark.parametrize(
    ("tools", "line"),
    [
        ([{"description": "x"}], "tools[0]: got no function with a name, wanted one"),
        ({"a": 1}, "tools: got an object, wanted a list"),
        (["f"], "tools[0]: got text, wanted an object"),
        ([TOOL, {"x": {"y": "\udc00"}}], r"tools[1]: got \udc00, half of a character"),
        ([{"\0": 1}], "tools[0]: got a NUL character"),
    ],
)
def test_faults_of_tools(tools: Any, line: str) -> None:
    assert faults_of("messages", [HI], tools=tools)[0].startswith(line)


def test_deep_tools_are_a_fault() -> None:
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"a": deep}
    assert faults_of("messages", [HI], tools=[deep]) == ["nested too deeply"]


@pytest.mark.parametrize("text", ["", " \n\t", ["x"], "a\0b"])
def test_faults_of_documents(text: str | list[str]) -> None:
    with pytest.raises(Wrong, match=r"^text: got"):
        parse({"text": text}, "text")
