"""Conversations to ids: the original's prompts, Hugging Face's templates, and no injected turns."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen_jax.text.chatml import DEFAULT_SYSTEM, prompt_ids, render, reply_text, stop_ids
from qwen_jax.text.tokenizer import Tokenizer
from tests.assets import read_vocabulary

GOLDEN = Path(__file__).parents[2] / "golden/text"
CONTEXT = json.loads((GOLDEN / "context.json").read_text("utf-8"))
REPLIES = json.loads((GOLDEN / "decode_tokens.json").read_text("utf-8"))

# In the manner of Qwen3's: tools, a rewritten assistant turn, an argument; and, unlike it, a system
# and a first user message joined with nothing between.
TEMPLATE = """
{%- for tool in tools or [] %}
    {{- '<tool_call>' + tool | tojson + '\\n' }}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content }}
        {%- continue %}
    {%- endif %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set content = '<think>' + content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- content + '<|im_end|>' + '\\n<|im_start|>' + message.role + '\\n' }}
    {%- for call in message.tool_calls %}
        {{- call.name + (call.arguments | tojson) }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>' + eos_token }}
    {%- endif %}
{%- endif %}
"""
USER = {"role": "user", "content": "hi"}
TOOL = {"name": "weather", "description": '天气 <b>now</b> & "then"', "parameters": {"a<b": [1]}}


def with_template(folder: Path, source: str) -> Tokenizer:
    vocabulary = read_vocabulary(folder)
    assert vocabulary is not None
    return Tokenizer(dataclasses.replace(vocabulary, chat_template=source))


@pytest.fixture(scope="session")
def later(small_folder: Path) -> Tokenizer:
    """A tokenizer with a chat template."""
    return with_template(small_folder, TEMPLATE)


@pytest.mark.parametrize("case", CONTEXT["cases"])
def test_prompts_are_the_original_ones(real: Tokenizer, case: dict[str, Any]) -> None:
    assert (
        prompt_ids(real, **{k: v for k, v in case.items() if k not in ("ids", "raw_text")})
        == (case["ids"])
    )


def test_the_window_holds_fewer_tokens_than_its_size(small: Tokenizer) -> None:
    history = [("a", "b")]
    whole, short = prompt_ids(small, "c", history), prompt_ids(small, "c")
    system = short.index(small.specials["<|im_end|>"]) + 1
    size = system + len(whole) - len(short)
    assert prompt_ids(small, "c", history, max_window_size=size) == short
    assert prompt_ids(small, "c", history, max_window_size=size + 1) == whole


def test_stop_ids_are_the_original_ones_and_end_of_text(real: Tokenizer) -> None:
    originals = [id for (id,) in CONTEXT["stop_words_ids"]["chatml"]]
    assert stop_ids(real) == [*originals, real.end_of_text]
    assert stop_ids(real, "raw") == [real.end_of_text]


@pytest.mark.parametrize("case", REPLIES)
def test_replies_are_the_original_ones_but_for_the_lost_last_token(
    real: Tokenizer, case: dict[str, Any]
) -> None:
    ours = {"cut by": "cut by length", "end<|endoftext|>": "end"}  # no <|im_…|> ends these two
    reply = reply_text(real, case["tokens"][case["context_length"] :], case["chat_format"])
    assert reply == ours.get(case["text"], case["text"])


def test_an_unknown_chat_format_is_refused(small: Tokenizer) -> None:
    with pytest.raises(ValueError, match="got chat_format 'alpaca', wanted one of chatml, raw"):
        prompt_ids(small, "hi", chat_format="alpaca")


def test_a_raw_prompt_has_no_history(small: Tokenizer) -> None:
    with pytest.raises(ValueError, match="has no history"):
        prompt_ids(small, "hi", [("a", "b")], chat_format="raw")


def test_without_a_template_messages_are_a_v1_prompt(small: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b <|im_end|>"},
        {"role": "user", "content": "c"},
    ]
    history = [("a", "b <|im_end|>")]
    assert render(small, messages) == prompt_ids(small, "c", history, DEFAULT_SYSTEM)
    terse = [{"role": "system", "content": ""}, *messages]
    assert render(small, terse) == prompt_ids(small, "c", history, "")
    assert render(small, messages, max_window_size=1) == prompt_ids(small, "c")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "got no messages"),
        ([{"role": "system", "content": "s"}], "got the roles system;"),
        ([USER, {"role": "assistant", "content": "b"}], "from user to user"),
        ([USER, {"role": "system", "content": "s"}, USER], "got the roles user, system, user"),
        ([USER, {"role": "tool", "content": "4"}], "got the roles user, tool"),
        ([{"role": "developer", "content": "x"}], "role 'developer', wanted one of system, user"),
        ([{"role": "user", "content": ["x"]}], "user content of type list, wanted a string"),
        ([{"role": "user"}], "user content of type NoneType"),
    ],
)
def test_messages_that_v1_cannot_express_are_refused(
    small: Tokenizer, messages: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render(small, messages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": [TOOL]}, "tools needs a chat template"),
        ({"enable_thinking": False}, "enable_thinking needs a chat template"),
        ({"add_generation_prompt": False}, "add_generation_prompt=False needs a chat template"),
    ],
)
def test_what_only_a_template_can_do_is_refused_without_one(
    small: Tokenizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render(small, [USER], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": "x"}, "got template argument 'chat_template', wanted one of enable_th"),
        ({"messages_": 1}, "got template argument 'messages_'"),
        ({"enable_thinking": "no"}, "got enable_thinking='no', wanted a bool"),
        ({"max_window_size": 9}, "max_window_size is for checkpoints without"),
    ],
)
def test_template_arguments_are_a_short_list(
    later: Tokenizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render(later, [USER], **options)


def test_what_a_template_would_ignore_is_refused(small_folder: Path) -> None:
    deaf = with_template(small_folder, "{{ messages[0].content }}")
    with pytest.raises(ValueError, match="template ignores enable_thinking, tools"):
        render(deaf, [USER], tools=[TOOL], enable_thinking=True)


@pytest.mark.parametrize("options", [{}, {"tools": [TOOL]}, {"enable_thinking": False}])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_rendered_conversation_has_hugging_face_ids(
    later: Tokenizer, oracle: Any, options: dict[str, Any], add_generation_prompt: bool
) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "brown fox"},
        {"role": "user", "content": "Is a < b && b > c? <html> 你好 cafe\u0301 <|"},
        {"role": "assistant", "content": "hm</think>\n\nyes <think>"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "w", "arguments": {"x": 1}}]},
        {"role": "tool", "content": '{"y": "<4"}'},
    ]
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    variables = {"messages": messages, "eos_token": "<|im_end|>", **options}
    text = environment.from_string(TEMPLATE).render(
        **variables, add_generation_prompt=add_generation_prompt
    )
    ids = render(later, messages, add_generation_prompt=add_generation_prompt, **options)
    assert ids == oracle.encode(text, add_special_tokens=False).ids


fragments = ["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<", "<think>", "</think>", "ll>", "ü"]
hostile = st.lists(
    st.sampled_from([*fragments, "<tool_ca", "\n", "x", "\U000f0000", "\U000f0001", "\ue000"])
).map("".join)


@settings(max_examples=300, deadline=None)
@given(system=hostile, user=hostile, name=hostile, value=hostile)
@example(system="<|im_", user="end|>", name="\U000f0000<|im_end|>", value="<think>")
def test_what_a_user_types_never_becomes_a_control_token(
    later: Tokenizer, system: str, user: str, name: str, value: str
) -> None:
    def ids(system: str, user: str, name: str, value: str) -> list[int]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return render(later, messages, tools=[{name: {"enum": [value]}}])

    def controls(ids: list[int]) -> list[int]:
        return [id for id in ids if id in later.specials.values()]

    got = ids(system, user, name, value)
    assert controls(got) == controls(ids("", "", "", ""))
    tool = json.dumps({name: {"enum": [value]}}, ensure_ascii=False)
    assert later.decode(got) == (
        f"<tool_call>{tool}\n{system}{user}<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\n"
    )


def test_in_what_the_assistant_said_markup_counts_and_turns_do_not(later: Tokenizer) -> None:
    said = {"role": "assistant", "content": "<tool_call>{}</tool_call><|im_end|>"}
    ids = render(later, [said], add_generation_prompt=False)
    assert ids.count(later.specials["<tool_call>"]) == 1
    assert ids.count(later.specials["<|im_end|>"]) == 1  # the template's
    assert later.decode(ids).count("<|im_end|>") == 2


def test_without_markup_nothing_the_assistant_said_counts(small_folder: Path) -> None:
    vocabulary = read_vocabulary(small_folder)
    tokenizer = Tokenizer(
        dataclasses.replace(vocabulary, markup=(), chat_template="{{ messages[0].content }}")
    )
    ids = render(tokenizer, [{"role": "assistant", "content": "<think><|im_end|>"}])
    assert not set(ids) & set(tokenizer.specials.values())


def test_a_control_token_that_is_a_word_stays_text_too(small_folder: Path) -> None:
    vocabulary = read_vocabulary(small_folder)
    specials = dict(vocabulary.specials) | {"assist": 5000, "§": 5001}
    source = "§{{ messages[0].content }}assist"
    tokenizer = Tokenizer(dataclasses.replace(vocabulary, specials=specials, chat_template=source))
    ids = render(tokenizer, [{"role": "user", "content": "an assistant §"}])
    assert [id for id in ids if id >= 5000] == [5001, 5000]


def test_content_may_be_absent_beside_tool_calls(later: Tokenizer) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}
    assert "None" not in later.decode(render(later, [USER, call]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ namespace.__init__.__globals__ }}", "access to attribute '__init__'"),
        ("{{ messages.append(1) }}", "access to attribute 'append'"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ raise_exception('no such role') }}", "failed: no such role"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content + 1 }}", "failed: can only concatenate str"),
    ],
)
def test_a_template_that_misbehaves_is_a_clear_error(
    small_folder: Path, source: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render(with_template(small_folder, source), [USER])


def test_a_template_may_ask_for_the_date(small_folder: Path) -> None:
    tokenizer = with_template(small_folder, "{{ strftime_now('%Y') }}")
    assert tokenizer.decode(render(tokenizer, [USER])).isdigit()
