"""What a model says is read in time that grows as it does, however a stranger made it say that."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from serve.text import react
from serve.text.hermes import HermesParser
from serve.text.message import Call, Gathered, Message, Parser
from serve.text.react import ReactParser
from serve.text.thinking import ThinkingParser
from tests.growth import linear

ACTION = "\nAction: f\nAction Input: "
CASES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "an open call": (HermesParser, "<tool_call>", "a b "),
    "markers in one string": (HermesParser, '<tool_call>{"a": "', "</tool_call>"),
    "markers in many strings": (HermesParser, '<tool_call>["', '</tool_call>", "'),
    "markers after escapes": (HermesParser, '<tool_call>["', '\\"</tool_call>'),
    "calls": (HermesParser, "", '<tool_call>{"name": "f"}</tool_call>'),
    "line breaks after a call": (HermesParser, '<tool_call>{"name": "f"}</tool_call>', "\n"),
    "no call yet": (ReactParser, "", "Thought: a\n"),
    "a call without a name": (ReactParser, "\nAction:\nAction Input:", "\nAction: f"),
    "blanks in arguments": (ReactParser, ACTION + "{", " \n"),
    "blanks before arguments": (ReactParser, ACTION, "\n"),
    "a thought of line breaks": (lambda: ThinkingParser(Parser(), True), "a", "\n"),
    "blanks before a thought": (lambda: ThinkingParser(Parser(), False), "", " \n"),
}


@pytest.mark.parametrize("case", CASES)
def test_reading(case: str) -> None:
    parser, before, part = CASES[case]

    def read(pushes: Iterable[str]) -> None:
        reader = parser()
        for text in pushes:
            reader.push(text)
        reader.finish()

    assert linear(read, lambda size: [before, *[part] * size], 4000)


@pytest.mark.parametrize("case", CASES)
def test_reading_at_once(case: str) -> None:
    parser, before, part = CASES[case]
    assert linear(lambda text: parser().push(text), lambda size: before + part * size, 4000)


def test_a_message_of_many_gains() -> None:
    def gather(gains: Any) -> Any:
        whole = Gathered()
        for gained in gains:
            whole.add(gained)
        return whole.message()

    gains = [
        Message("a", "b"),
        Message(calls={0: Call("f", "{")}),
        Message(calls={0: Call("", "}")}),
    ]
    assert gather(gains * 2) == Message("aa", "bb", {0: Call("ff", "{}{}")})
    assert linear(gather, lambda size: gains * size, 2000)


def test_replies_in_a_row() -> None:
    def messages(size: int) -> Any:
        return [
            {"role": "user", "content": "a"},
            *[{"role": "assistant", "content": "b" * 99}] * size,
        ]

    assert linear(react.conversation, messages, 2000)


def test_a_marker_in_a_later_string_is_text() -> None:
    source = '{"name": "f", "arguments": {"a": "%s", "b": "\\"%s"}}' % (("</tool_call>",) * 2)
    parser = HermesParser()
    parser.push(f"<tool_call>{source[:40]}")
    gained = parser.push(f"{source[40:]}</tool_call>")
    assert gained.calls[0].arguments.count("</tool_call>") == 2
