"""Calls and texts that follow grammars: what fits, and what a model can do about it."""

import copy
import json
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_jax.text.tokenizer import Tokenizer
from serve.text import hermes, react
from serve.text.grammar import Constraint, Grammars, Rules, Unusable, of_rules, of_schema
from serve.text.message import Message, Parser
from tests.serve.conftest import Serve
from tests.serve.text.test_tools import ASK, HERMES, REACT, TEMPLATE, TIME, TOOLS, WEATHER, streamed

BODY = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": BODY}}
STRICT = [{"type": "function", "function": {**WEATHER, "strict": True}}]
ODD = {"type": "object", "properties": {}, "not": {"required": ["x"]}}  # "not" is not enforced
CALL, NOW = HERMES[12:], '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
BERLIN = CALL.replace("Rome", "Berlin")
FORMS = {"hermes": (HERMES, TEMPLATE), "v1": (REACT.split("\nObs")[0], None)}


def allowed(constraint: Constraint, id: int) -> int:
    return constraint.mask(60)[id // 8] >> id % 8 & 1


def follows(constraint: Constraint, ids: list[Any]) -> bool:
    """Whether a model may write these ids; as far as it may, it does."""
    for id in ids:
        if constraint.finish or not allowed(constraint, id):
            return False
        constraint.accept(id)
    return True


def fits(
    grammars: Grammars,
    small: Tokenizer,
    rules: str,
    text: str,
    markup: bool = True,
    start: str = "start: answer",
) -> bool:
    """Whether a text may be the whole answer."""
    body = of_schema(BODY) if "@body" in rules else None
    constraint = grammars.compile(Rules(of_rules(f"{start}\n{rules}"), body))
    if not follows(constraint, small.encode(text, specials=small.markup if markup else ())):
        return False
    return bool(constraint.finish or allowed(constraint, small.specials["<|im_end|>"]))


@pytest.mark.parametrize("markup", [True, False])
@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Just talk, <tool> and </b>.", ["text"]),
        ("", ["text"]),
        (CALL, ["nothing", "text", "body"]),
        (f"{CALL}\n{NOW}", ["nothing", "text", "body"]),
        (f"Wait.\n{CALL}\n\n{NOW} Done.", ["text"]),
        ('{"n": 3}', ["text", "body"]),
        ('{"n": ""}', ["text"]),
        (CALL + '{"n": 3}', ["text"]),
        (BERLIN, []),
        (f"{CALL}\n{BERLIN}", []),
        (CALL.replace("weather", "other"), []),
        (NOW.replace("{}", '{"a": 1}'), []),
        ("<tool_call>", []),
        ("<tool_call>\n{", []),
    ],
)
def test_hermes_answers(
    grammars: Grammars, small: Tokenizer, text: str, kinds: list[Any], markup: bool
) -> None:
    """With the markers as tokens of their own, and as text."""
    tokens = small.markup if markup else ()
    for kind in ("nothing", "text", "body"):
        rules = hermes.rules([WEATHER, TIME], kind, tokens)
        assert fits(grammars, small, rules, text, markup) == (kind in kinds), kind


def test_markers_spelled_out_begin_no_call(grammars: Grammars, small: Tokenizer) -> None:
    """Letter by letter a model could write a marker that the parser takes for a call's."""
    rules = hermes.rules([WEATHER], "text", small.markup)
    constraint = grammars.compile(Rules(of_rules(f"start: answer\n{rules}")))
    assert not follows(constraint, small.encode("a <tool_call>"))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Thought: hm.", ["text"]),
        (FORMS["v1"][0], ["text", "body"]),
        ('Thought: I need a tool.\nAction: time\nAction Input: {}', ["nothing", "text", "body"]),
        (FORMS["v1"][0].replace("Rome", "Berlin"), []),
        ("Thought: x\nAction: other", []),
        ("Thought: x\nFinal Answer: 4\nAction: y", ["text"]),
        ("Thought: x\nFinal Answer: ", ["text"]),
        ('Thought: x\nFinal Answer: {"n": 3}', ["text", "body"]),
        ('{"n": 3}', ["text"]),
    ],
)  # fmt: skip
def test_react_answers(grammars: Grammars, small: Tokenizer, text: str, kinds: list[Any]) -> None:
    for kind in ("nothing", "text", "body"):
        rules = react.rules([WEATHER, TIME], kind, going_on=False)
        assert fits(grammars, small, rules, text) == (kind in kinds), kind


def test_a_thought_goes_on(grammars: Grammars, small: Tokenizer) -> None:
    rules = react.rules([TIME], "nothing", going_on=True)
    assert fits(grammars, small, rules, " I need a tool.\nAction: time\nAction Input: {}")


PIECES = [
    *("<tool_call>", "</tool_call>", '\n{"name": "weather", "arguments": ', "}\n", "a"),
    *('{"city": "Rome"}', '{"city": "Berlin"}', "{}", "\n", "\nAction:", " weather"),
    *("\nAction Input: ", "\nFinal Answer: ", "\nObservation:", "Thought:"),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.booleans()), max_size=14))
@pytest.mark.parametrize("form", FORMS)
def test_no_call_slips_through(
    grammars: Grammars, small: Tokenizer, form: str, parts: list[Any]
) -> None:
    """Whatever a model tries, the parser finds no call whose arguments break the schema."""
    parser: Parser
    if form == "hermes":
        rules, parser = hermes.rules([WEATHER], "text", small.markup), hermes.HermesParser()
    else:
        rules, parser = react.rules([WEATHER], "text", False), react.ReactParser()
    constraint, message = grammars.compile(Rules(of_rules(f"start: answer\n{rules}"))), Message()
    for piece, markup in parts:
        for id in small.encode(piece, specials=small.markup if markup else ()):
            if not constraint.finish and allowed(constraint, id):
                constraint.accept(id)
                message.add(parser.push(small.decode([id])))
    if constraint.finish or allowed(constraint, small.specials["<|im_end|>"]):
        message.add(parser.finish())
        for call in message.calls.values():
            assert json.loads(call.arguments)["city"] in ("Bonn", "Rome")


def test_schemas_of_arguments(grammars: Grammars, small: Tokenizer) -> None:
    """None declared: none taken. No schema: any object, unless it has to be followed."""
    ask = lambda function, arguments: fits(
        grammars,
        small,
        hermes.rules([{"name": "f", **function}], "nothing", small.markup),
        f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>',
    )
    assert ask({}, "{}")
    assert not ask({}, '{"a": 1}')
    assert ask({"parameters": [{"name": "a"}]}, '{"a": 1}')
    assert ask({"parameters": {}}, '{"a": 1}')
    assert not ask({"parameters": {}}, "1")
    with pytest.raises(Unusable, match="'f' is strict"):
        ask({"parameters": [{"name": "a"}], "strict": True}, "{}")
    with pytest.raises(Unusable, match="not"):
        ask({"parameters": ODD, "strict": True}, "{}")
    assert ask({"parameters": ODD}, "{}")
    assert ask({"parameters": ODD, "strict": False}, "{}")


# --- over HTTP ---------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_strict_functions(scripted: Serve, form: str) -> None:
    """The model's call breaks the schema: strict, it cannot; its text is its own either way."""
    said, template = FORMS[form]
    with scripted(said.replace("Rome", "Berlin"), template) as running:
        client = running.client()
        for tools, cities in ((TOOLS, {"Berlin"}), (STRICT, {"Bonn", "Rome"})):
            (choice,) = client.chat.completions.create(**ASK, tools=tools).choices
            (call,) = choice.message.tool_calls
            assert json.loads(call.function.arguments)["city"] in cities
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content.strip() == said[: said.find("\n")].removeprefix(
                "Thought: "
            )
            ((name, given),), content, finish = streamed(client, tools=tools)
            assert (name, given) == ("weather", call.function.arguments)
            assert (content, finish) == (choice.message.content, "tool_calls")


def test_strict_functions_leave_text_alone(scripted: Serve) -> None:
    said = "I need no <b>tool</b> for that, thank you."
    with scripted(said, TEMPLATE) as running:
        (choice,) = running.client().chat.completions.create(**ASK, tools=STRICT).choices
        assert (choice.message.content, choice.finish_reason) == (said, "stop")


def test_at_most_one_call(scripted: Serve) -> None:
    """parallel_tool_calls=false, the old form, and a function by name hold one call."""
    with scripted(f"{HERMES}\n{CALL} Done.", TEMPLATE) as running:
        client = running.client()
        ask = lambda **how: client.chat.completions.create(**ASK, **how)
        both = ask(tools=TOOLS)
        assert len(both.choices[0].message.tool_calls) == 2
        assert ask(tools=TOOLS, parallel_tool_calls=True).choices[0].message.content.endswith(".")
        one = ask(tools=TOOLS, parallel_tool_calls=False)
        (choice,) = one.choices
        assert len(choice.message.tool_calls) == 1
        assert (choice.message.content, choice.finish_reason) == ("Let me see.\n", "tool_calls")
        assert one.usage.completion_tokens < both.usage.completion_tokens / 1.8
        calls, content, finish = streamed(client, tools=TOOLS, parallel_tool_calls=False)
        assert (len(calls), content, finish) == (1, "Let me see.\n", "tool_calls")
        old = ask(functions=[WEATHER])
        assert old.usage == one.usage.model_copy(
            update={
                "prompt_tokens": old.usage.prompt_tokens,
                "total_tokens": old.usage.total_tokens,
                "prompt_tokens_details": old.usage.prompt_tokens_details,
            }
        )
        running.settle()


def test_required_calls(scripted: Serve) -> None:
    """One or several when any must be; one by name, or when they may not be parallel."""
    with scripted(f"{CALL}\n{NOW}", TEMPLATE) as running:
        named = {"type": "function", "function": {"name": "weather"}}
        for how, count in (
            ({"tool_choice": "required"}, 2),
            ({"tool_choice": "required", "parallel_tool_calls": False}, 1),
            ({"tool_choice": named}, 1),
        ):
            made = running.client().chat.completions.create(**ASK, tools=TOOLS, **how)
            assert len(made.choices[0].message.tool_calls) == count


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_a_call_or_a_text_in_the_format(scripted: Serve, form: str, choice: str) -> None:
    said, template = FORMS[form]
    answer = '{"n": 3}'
    if form == "v1" and choice != "none":
        answer = f"Thought: I know.\nFinal Answer: {answer}"
    for text in (said.removeprefix("Let me see.\n"), answer):
        with scripted(text, template) as running:
            made = running.client().chat.completions.create(
                **ASK, tools=TOOLS, tool_choice=choice, response_format=FORMAT
            )
            message = made.choices[0].message
            if choice == "required" or (choice == "auto" and text != answer):
                assert message.tool_calls[0].function.name in ("weather", "time")
            else:
                assert message.tool_calls is None
                assert isinstance(json.loads(message.content)["n"], int)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": ODD}}]}, "tools"),
        ({"functions": [{"name": "f", "parameters": [1], "strict": True}]}, "functions"),
        (
            {"tools": TOOLS, "response_format": {"type": "json_schema"} | {
                "json_schema": {"name": "x", "schema": ODD, "strict": True}}},
            "response_format",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_named(
    scripted: Serve, change: dict[str, Any], param: str | None
) -> None:
    change = copy.deepcopy(change)
    for tool in change.get("tools", ()):
        tool["function"].setdefault("strict", True)
    with scripted(template=TEMPLATE) as running, pytest.raises(openai.BadRequestError) as caught:
        running.client().chat.completions.create(**ASK | change)
    assert caught.value.param == param
    body: Any = caught.value.body
    assert body["message"].startswith(f"{param} cannot be used: ")


def test_a_strict_format_lets_no_keyword_pass(scripted: Serve) -> None:
    wanted: dict[str, Any] = {"name": "x", "schema": ODD, "strict": None}
    with scripted("{}") as running:
        ask = lambda: running.client().chat.completions.create(
            **ASK, response_format={"type": "json_schema", "json_schema": wanted}
        )
        assert ask().choices[0].message.content == "{}"
        wanted["strict"] = True
        with pytest.raises(openai.BadRequestError):
            ask()
