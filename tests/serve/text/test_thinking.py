"""Thoughts before answers: told apart, counted, and free of whatever the answer has to follow."""

import copy
import json
from typing import Any

import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen_jax.text.chatml import render
from qwen_jax.text.tokenizer import Tokenizer
from serve.text import thinking
from serve.text.grammar import Grammars, Rules, of_rules, of_schema
from serve.text.hermes import HermesParser
from serve.text.message import Message, Parser
from tests.serve.conftest import Serve
from tests.serve.text.test_grammar import BODY, CALL, FORMAT, STRICT, fits, follows
from tests.serve.text.test_tools import ASK as SHORT
from tests.serve.text.test_tools import TEMPLATE, TOOLS, WEATHER, read

# In the manner of Qwen3's: thoughts are the model's own to begin, unless there shall be none.
HYBRID = TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
ALWAYS = HYBRID.replace("assistant\n{% if", "assistant\n<think>\n{% if")  # like Qwen3-Thinking's
THOUGHT, REST = "<think>\nLet me see {.\n\nSo <b>.\n</think>", "\n\nHello.\n"
FORMS = {"hybrid": (HYBRID, THOUGHT), "always": (ALWAYS, THOUGHT.removeprefix("<think>\n"))}
ASK = SHORT | {"max_tokens": 200}
TOLD = "Let me see {.\n\nSo <b>."


@pytest.mark.parametrize(
    ("begun", "text", "reasoning", "content"),
    [
        (False, THOUGHT + REST, TOLD, "Hello.\n"),
        (True, THOUGHT[8:] + REST, TOLD, "Hello.\n"),
        (False, "\n <think>a</think>b", "a", "b"),
        (False, "\n\nHello <think>.", "", "\n\nHello <think>."),
        (False, "<thin", "", "<thin"),
        (False, "<think>\n", "", ""),
        (False, "<think>a</thi", "a</thi", ""),
        (True, "a\n\n</think>\n", "a", ""),
        (True, "</think>\n\n\na\n\n</think>", "", "a\n\n</think>"),
    ],
)
def test_thoughts(begun: bool, text: str, reasoning: str, content: str) -> None:
    wanted = Message(content, reasoning)
    for size in range(1, len(text)):
        parser = thinking.ThinkingParser(Parser(), begun)
        assert read(parser, text, range(size, len(text), size)) == wanted


PARTS = "<think>|</think>|</th|\n|a| |<tool_call>|</tool_call>|" + CALL


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(PARTS.split("|")), max_size=9),
    st.sets(st.integers(0, 90)),
    st.booleans(),
)
@example(["<think>", "a", "</think>", "\n", CALL, "\n", "a"], {1, 16}, False)
def test_pieces_change_nothing(parts: list[Any], cuts: set[Any], begun: bool) -> None:
    text = "".join(parts)
    cuts = {min(cut, len(text)) for cut in cuts}
    parser = lambda: thinking.ThinkingParser(HermesParser(), begun)
    whole = read(parser(), text)
    assert read(parser(), text, cuts) == whole
    _, found, rest = text.removeprefix("<think>").partition("</think>")
    if (begun or text.startswith("<think>")) and found:
        assert whole.calls == read(HermesParser(), rest.lstrip("\n")).calls


def test_what_a_prompt_leaves_open(small: Tokenizer) -> None:
    asked = [{"role": "user", "content": "hi <think>"}]
    said = [*asked, {"role": "assistant", "content": "<think>a</think>b"}, *asked]

    def after(template: str, said: list[dict[str, str]] = asked, **how: Any) -> str:
        tokenizer = copy.copy(small)
        tokenizer.chat_template = template
        return thinking.after(tokenizer, render(tokenizer, said, **how))

    assert after(HYBRID) == "possible"
    assert after(HYBRID, said=said) == "possible"
    assert after(HYBRID, enable_thinking=True) == "possible"
    assert after(HYBRID, enable_thinking=False) == "none"
    assert after(ALWAYS) == "begun"
    assert after(TEMPLATE) == "none"
    bare = copy.copy(small)
    bare.specials = {k: id for k, id in small.specials.items() if "think" not in k}
    bare.chat_template = HYBRID
    assert thinking.after(bare, bare.encode("assistant\n")) == "none"


@pytest.mark.parametrize(
    ("state", "text", "good"),
    [
        ("possible", THOUGHT + '\n\n{"n": 1}', True),
        ("possible", '{"n": 1}', True),
        ("possible", THOUGHT, False),
        ("possible", "<think>a", False),
        ("possible", THOUGHT + '\n\n{"n": "1"}', False),
        ("possible", "a" + THOUGHT + '\n\n{"n": 1}', False),
        ("begun", 'a</think>\n\n{"n": 1}', True),
        ("begun", '{"n": 1}', False),
        ("begun", '</think>\n\n{"n": 1}', True),
        ("none", THOUGHT + '\n\n{"n": 1}', False),
    ],
)
def test_a_grammar_waits_for_the_thought(
    grammars: Grammars, small: Tokenizer, state: thinking.Thought, text: str, good: bool
) -> None:
    start = thinking.rules(state)
    assert fits(grammars, small, "answer: @body", text, start=start) == good


def test_a_marker_spelled_out_ends_no_thought(grammars: Grammars, small: Tokenizer) -> None:
    rules = of_rules(f"{thinking.rules('begun')}\nanswer: @body")
    assert not follows(grammars.compile(Rules(rules, of_schema(BODY))), small.encode("a</think>"))


# --- over HTTP ---------------------------------------------------------------------------------
def streamed(client: Any, **how: Any) -> tuple[str, str, str, list[dict[str, Any]]]:
    """Thought, content, why it ended, and the deltas of a stream."""
    stream = client.chat.completions.create(**ASK | how, stream=True)
    choices = [choice for chunk in stream for choice in chunk.choices]
    deltas = [choice.delta.model_dump(exclude_none=True) for choice in choices]
    told = ["".join(d.get(name, "") for d in deltas) for name in ("reasoning_content", "content")]
    return *told, choices[-1].finish_reason, deltas


@pytest.mark.parametrize("form", FORMS)
def test_a_thought_is_told_apart(scripted: Serve, small: Tokenizer, form: str) -> None:
    template, thought = FORMS[form]
    with scripted(thought + REST, template) as running:
        client = running.client()
        answer = client.chat.completions.create(**ASK)
        (choice,) = answer.choices
        assert (choice.message.reasoning_content, choice.message.content) == (TOLD, "Hello.\n")
        spent = answer.usage.completion_tokens_details.reasoning_tokens
        assert spent == len(small.encode(thought, specials=small.markup))
        *told, finish, deltas = streamed(client)
        assert (*told, finish) == (TOLD, "Hello.\n", "stop")
        assert sum("reasoning_content" in delta for delta in deltas) > 2
        stopped = client.chat.completions.create(**ASK, stop=["So", "lo"]).choices[0]
        assert (stopped.message.reasoning_content, stopped.message.content) == (TOLD, "Hel")
        cut = client.chat.completions.create(**ASK | {"max_tokens": spent - 2})
        message = cut.choices[0].message
        assert TOLD.startswith(message.reasoning_content)
        assert (message.content, cut.choices[0].finish_reason) == ("", "length")
        assert cut.usage.completion_tokens_details.reasoning_tokens == spent - 2
        got = streamed(client, max_tokens=spent - 2)[:3]
        assert got == (message.reasoning_content, "", "length")


def test_no_thought(scripted: Serve) -> None:
    """None where it is switched off, where the model has none, in plain completions."""
    kwargs = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    twice = {"extra_body": kwargs["extra_body"] | {"enable_thinking": False}}
    for template, how in ((HYBRID, kwargs), (HYBRID, twice), (TEMPLATE, {})):
        with scripted(THOUGHT + REST, template) as running:
            client = running.client()
            answer = client.chat.completions.create(**ASK, **how)
            assert answer.choices[0].message.content == THOUGHT + REST
            assert not hasattr(answer.choices[0].message, "reasoning_content")
            assert answer.usage.completion_tokens_details.reasoning_tokens == 0
            plain = client.completions.create(model="tiny", prompt="hi", max_tokens=200)
            assert plain.choices[0].text.startswith(THOUGHT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tools", [TOOLS, STRICT])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_follow_thoughts(
    scripted: Serve,
    small: Tokenizer,
    form: str,
    tools: list[dict[str, Any]],
    choice: str,
) -> None:
    """What looks like a call within a thought is none; one call ends the answer, where asked."""
    template, thought = FORMS[form]
    inner = thought.replace("{", f"{CALL}")
    if choice == "required" or tools is STRICT:
        inner = thought  # a grammar lets no marker into a thought
    how = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
    said = f"{inner}\n\n{CALL}"
    with scripted(f"{said}\n{CALL}", template) as running:
        made = running.client().chat.completions.create(**ASK, **how)
        message = made.choices[0].message
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments)["city"] == "Rome"
        assert (message.content, made.choices[0].finish_reason) == (None, "tool_calls")
        assert message.reasoning_content == inner.split("\n</think>")[0].removeprefix("<think>\n")
        spent = len(small.encode(said, specials=small.markup))
        assert made.usage.completion_tokens == spent


@pytest.mark.parametrize("form", FORMS)
def test_a_format_is_for_what_follows(scripted: Serve, form: str) -> None:
    template, thought = FORMS[form]
    with scripted(f"{thought}\n\nNo JSON!", template) as running:
        client = running.client()
        ask = ASK | {"response_format": FORMAT}
        message = client.chat.completions.create(**ask).choices[0].message
        assert message.reasoning_content == TOLD
        assert list(json.loads(message.content)) == BODY["required"]
        assert streamed(client, response_format=FORMAT)[:2] == (TOLD, message.content)
        off = {"extra_body": {"enable_thinking": False}}
        message = client.chat.completions.create(**ask, **off).choices[0].message
        assert list(json.loads(message.content)) == BODY["required"]


def test_thoughts_come_back(scripted: Serve) -> None:
    """A client sends the message it got; only what an assistant thought is taken."""
    with scripted("Hello.") as original, scripted("Hello.", HYBRID) as later:
        for running in (original, later):
            ask = running.client().chat.completions.create
            said = {"role": "assistant", "content": "so", "reasoning_content": "hm"}
            turns = [ASK["messages"][0], said, ASK["messages"][0]]
            assert ask(**ASK | {"messages": turns}).choices[0].message.content == "Hello."
            turns[0] = turns[0] | {"reasoning_content": "hm"}
            with pytest.raises(openai.BadRequestError, match="user has no reasoning_content"):
                ask(**ASK | {"messages": turns})


@pytest.mark.parametrize("arguments", ['{"a": ' + "[" * 5000, f'{{"a": {"[" * 700 + "]" * 700}}}'])
def test_arguments_as_deep_as_they_like(scripted: Serve, arguments: str) -> None:
    """What a client says it called is text; no parser chokes on it."""
    call = {"name": WEATHER["name"], "arguments": arguments}
    turn = {"role": "assistant", "content": None, "function_call": call}
    with scripted("Hello.", HYBRID, length=9999) as running:
        messages = [ASK["messages"][0], turn, ASK["messages"][0]]
        answer = running.client().chat.completions.create(**ASK | {"messages": messages})
        assert answer.choices[0].message.content == "Hello."
