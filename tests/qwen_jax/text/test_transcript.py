"""Conversations as they are learnt: the ids of prompts, and who wrote which of them."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_jax.text.chatml import DEFAULT_SYSTEM, prompt_ids, render
from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.transcript import Part, transcript
from tests.assets import read_vocabulary

# In the manner of Qwen3's: tools, reasoning that the last answer alone keeps, results as a user's.
TEMPLATE = """
{%- if tools %}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {%- set role = 'user' if message.role == 'tool' else message.role %}
    {%- set content = message.content %}
    {%- if role == 'assistant' %}
        {%- set content = content.split('</think>')[-1] %}
        {%- if loop.last %}{%- set content = '<think>\\n</think>\\n' + content %}{%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + role + '\\n' + content }}
    {%- for call in message.tool_calls %}
        {{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
CALL: dict[str, Any] = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "brown fox"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "<think>so</think>yes", "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "It is 4"},
]


def with_template(folder: Path, source: str) -> Tokenizer:
    return Tokenizer(dataclasses.replace(read_vocabulary(folder), chat_template=source))


@pytest.fixture(scope="session")
def later(small_folder: Path) -> Tokenizer:
    return with_template(small_folder, TEMPLATE)


def written(tokenizer: Tokenizer, parts: Sequence[Part], writer: str) -> list[str]:
    """The texts that one writer wrote, without a break in each."""
    groups = itertools.groupby((part for part in parts if part[1]), key=lambda part: part[0])
    runs = ([id for _, ids in group for id in ids] for who, group in groups if who == writer)
    return [tokenizer.decode(ids) for ids in runs]


def test_parts_are_the_rendered_template(later: Tokenizer) -> None:
    tools = [CALL]
    parts = transcript(later, MESSAGES, tools)
    ids = [id for _, part in parts for id in part]
    assert ids == render(later, MESSAGES, tools=tools, add_generation_prompt=False)


def test_who_wrote_what(later: Tokenizer) -> None:
    parts = transcript(later, MESSAGES)
    assert written(later, parts, "answer") == [
        'yes<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><|im_end|>\n',
        "<think>\n</think>\nIt is 4<|im_end|>\n",
    ]
    assert written(later, parts, "text") == [
        "system\nbrown fox",
        "user\nhi",
        "assistant\n",
        "user\n4",
        "assistant\n",
    ]
    assert "".join(written(later, parts, "control")) == (
        "<|im_start|><|im_end|>\n<|im_start|><|im_end|>\n<|im_start|><|im_start|><|im_end|>\n"
        "<|im_start|>"
    )


def test_a_token_that_begins_before_the_answer_is_not_learnt(small_folder: Path) -> None:
    """The newline of the opening and those of the answer can be one token."""
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% endfor %}"
    plain = with_template(small_folder, source)
    for blanks in ("", "\n", "\n\n", " \n"):
        parts = transcript(plain, [{"role": "assistant", "content": blanks + "yes"}])
        (answer,) = written(plain, parts, "answer")
        whole = plain.encode(f"assistant\n{blanks}yes")
        assert [id for _, ids in parts for id in ids][1:] == whole
        size = len(plain.encode(answer))
        assert plain.decode(whole[-size:]) == answer
        assert len(plain.decode(whole[: -size - 1])) < len("assistant\n")


fragments = ["<|im_end|>", "<|im_start|>", "assistant\n", "<|im_start|>assistant\n", "\n", "x", "<"]
hostile = st.lists(st.sampled_from([*fragments, "<think>", "|im_end|>"])).map("".join)


@settings(max_examples=200, deadline=None)
@given(system=hostile, user=hostile, result=hostile)
def test_nobody_else_can_write_an_answer(
    later: Tokenizer, system: str, user: str, result: str
) -> None:
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": "yes"},
        {"role": "tool", "content": result},
    ]
    parts = transcript(later, messages)
    assert written(later, parts, "answer") == ["yes<|im_end|>\n"]


def test_an_answer_may_look_like_its_own_opening(later: Tokenizer) -> None:
    said = {"role": "assistant", "content": "<tool_call>assistant\nx</tool_call>\n"}
    parts = transcript(later, [said, MESSAGES[1]])
    assert written(later, parts, "answer") == [said["content"] + "<|im_end|>\n"]


def test_a_newline_elsewhere_is_text(small_folder: Path) -> None:
    source = "{{ '\\n' }}{% for m in messages %}{{ '<|im_start|>\\n<|im_end|>' }}{% endfor %}"
    parts = transcript(with_template(small_folder, source), MESSAGES[1:2])
    assert [who for who, _ in parts] == ["text", "control", "text", "control"]


def test_a_template_that_is_not_chatml_is_refused(small_folder: Path) -> None:
    other = with_template(small_folder, "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    with pytest.raises(ValueError, match="got 0 of 2 answers behind"):
        transcript(other, MESSAGES)


def test_without_a_template_it_is_the_prompt_of_v1_and_the_answer(small: Tokenizer) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = [id for _, part in transcript(small, messages) for id in part]
    answer = [*small.encode("b"), small.specials["<|im_end|>"], *small.encode("\n")]
    assert ids == prompt_ids(small, "a", system=DEFAULT_SYSTEM) + answer


def test_without_a_template_control_tokens_in_messages_count(small: Tokenizer) -> None:
    parts = transcript(small, [{"role": "user", "content": "<|endoftext|>"}])
    assert small.end_of_text in [id for who, part in parts for id in part if who == "text"]


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([], None, "got no messages"),
        (MESSAGES[:2], [CALL], "tools needs a chat template"),
        (MESSAGES[:3], None, "tool_calls needs a chat template"),
        (MESSAGES[3:4], None, "got the roles system, tool; without a chat template"),
        ([MESSAGES[1], MESSAGES[0]], None, "got the roles system, user, system; without"),
    ],
)
def test_what_v1_cannot_express_is_refused(
    small: Tokenizer, messages: list[Any], tools: list[dict[str, Any]] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        transcript(small, messages, tools)
