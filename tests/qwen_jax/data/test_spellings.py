"""The spellings that people have, as TRL, LLaMA-Factory and OpenAI read them."""

from typing import Any

import pytest

from qwen_jax.data.formats import Conversation, Document, Pair, Record, parse, recognise
from qwen_jax.files.problems import Wrong

HI = {"role": "user", "content": "hi"}
YES = {"role": "assistant", "content": "yes"}
SYSTEM = {"role": "system", "content": "s"}
CHAT = [HI, YES]
USER, BOT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}


def read(**item: Any) -> Record:
    return parse(item, recognise(item))


def fault(**item: Any) -> str:
    with pytest.raises(Wrong) as caught:
        read(**item)
    return str(caught.value)


@pytest.mark.parametrize(
    "item",
    [
        {"conversations": CHAT},
        {"messages": [USER, BOT]},
        {"conversations": [{**USER, "role": None, "content": None}, {**YES, "from": None}]},
        {"messages": [{"role": "human", "content": "hi"}, {"role": "gpt", "content": "yes"}]},
        {"messages": CHAT, "tools": None, "text": None, "label": None, "chosen": None},
        {"messages": [{**HI, "weight": 0}, {**YES, "weight": 1, "tool_calls": None}]},
        {"messages": CHAT, "prompt": "hi", "parallel_tool_calls": False, "tools": []},
        {"messages": CHAT, "functions": [], "system": ""},
        {"messages": [HI, {**YES, "content": [{"type": "text", "text": t} for t in ("ye", "s")]}]},
        {"instruction": "hi", "output": "yes"},
        {"instruction": "hi", "input": "", "output": "yes", "system": "", "history": []},
        {"instruction": "", "input": "hi", "output": "yes", "history": None, "text": "### hi yes"},
    ],
)
def test_one_conversation(item: dict[str, Any]) -> None:
    notes = {name for name in ("prompt", "text") if item.get(name)}
    assert read(**item) == Conversation(CHAT, unread=frozenset(notes))


@pytest.mark.parametrize(
    "item",
    [
        {"messages": [{"role": "developer", "content": "s"}, *CHAT]},
        {"conversations": [SYSTEM, *CHAT]},
        {"messages": CHAT, "system": "s"},
        {"instruction": "hi", "output": "yes", "system": "s"},
    ],
)
def test_a_system_text(item: dict[str, Any]) -> None:
    assert read(**item) == Conversation([SYSTEM, *CHAT])


def test_alpaca() -> None:
    found = read(instruction="Add.", input="1 and 1", output="2", history=[["hi", "yes"]])
    asked = {"role": "user", "content": "Add.\n1 and 1"}
    assert found == Conversation([*CHAT, asked, {"role": "assistant", "content": "2"}])
    assert fault(instruction=" ", output="x") == "instruction: got nothing but blanks, wanted text"
    assert fault(instruction="a") == "output: got null, wanted text"
    assert fault(instruction="a", output=["x", "y"]) == "output: got a list, wanted text"
    assert fault(instruction="a", input=0, output="x") == "input: got a number, wanted text"
    assert fault(instruction="a", output="x", history=[["q"]]).startswith(
        "history[0]: got a list of 1"
    )
    assert fault(instruction="a", output="x", history=[["q", 1]]).startswith(
        "history[0][1]: got a nu"
    )


def test_prompt_and_completion() -> None:
    assert read(prompt="The sky is", completion=" blue.", source=1) == Pair(
        "The sky is", " blue.", frozenset({"source"})
    )
    earlier = [HI, {"role": "assistant", "content": "what?"}, HI]
    found = read(prompt=earlier, completion=[YES])
    assert found == Conversation([*earlier, YES], learnt=(False, True), prompt=True)
    assert read(prompt=[HI], completion=[YES]) == Conversation(CHAT, prompt=True)
    assert fault(prompt="a") == "completion: got null, wanted text"
    assert fault(prompt=[HI]) == "completion: got null, wanted a list"
    assert fault(prompt="a", completion=[YES]) == "completion: got a list, wanted text"
    assert fault(prompt=[HI], completion="x") == "completion: got text, wanted a list"


def test_weights() -> None:
    no = {**YES, "weight": 0}
    assert read(messages=[HI, no, HI, YES]) == Conversation(CHAT * 2, learnt=(False, True))
    assert read(conversations=[USER, {**BOT, "weight": 0}]) == Conversation(CHAT, learnt=(False,))
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}', "weight": 0}
    found = read(conversations=[USER, call, {"from": "observation", "value": "1"}, BOT])
    assert isinstance(found, Conversation)
    assert found.learnt == (False, True)
    assert all("weight" not in message for message in found.messages)


@pytest.mark.parametrize(
    "more",
    [
        {"chosen": [YES], "rejected": [YES]},
        {"label": True},
        {"label": 0},
        {"kto_tag": False},
        {"rejected_response": "no"},
        {"preferred_output": [YES], "non_preferred_output": [YES]},
    ],
)
@pytest.mark.parametrize(
    "item",
    [
        {},
        {"messages": CHAT},
        {"conversations": [USER, BOT]},
        {"instruction": "hi", "output": "yes"},
        {"prompt": "hi", "completion": "yes"},
        {"text": "x"},
    ],
)
def test_preferences_are_refused(item: dict[str, Any], more: dict[str, Any]) -> None:
    assert fault(**item, **more).startswith(f"{', '.join(more)}: got data for preference learning")


def test_older_functions() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    result = {"role": "function", "name": "f", "content": "1"}
    function = {"name": "f", "parameters": {"type": "object"}}
    found = read(messages=[HI, call, result, YES], functions=[function])
    called = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert found == Conversation(
        [
            HI,
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "name": "f", "content": "1"},
            YES,
        ],
        [{"type": "function", "function": function}],
    )


@pytest.mark.parametrize(
    ("tool", "shown"),
    [
        ({"name": "f", "description": "d"}, {"name": "f", "description": "d"}),
        ({"name": "f", "parameters": None}, {"name": "f"}),
        ({"function": {"name": "f", "description": None}}, {"name": "f"}),
        (
            {"name_for_human": "F", "name_for_model": "f", "description_for_model": "d"},
            {"name": "f", "description": "d"},
        ),
    ],
)
@pytest.mark.parametrize("layout", ["conversations", "messages"])
def test_functions_are_shown_as_they_are_served(layout: str, tool: Any, shown: Any) -> None:
    found = read(**{layout: CHAT, "tools": [tool]})
    assert isinstance(found, Conversation)
    assert found.tools == [{"type": "function", "function": shown}]


def test_a_document_beside_columns_that_are_null() -> None:
    assert read(text="x", prompt=None, messages=None) == Document("x")
