"""Fields of other servers, in chats and completions."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from serve.engine.fair_queue import FairQueue
from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import CHAT
from tests.serve.text.test_thinking import HYBRID

ASK: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 60}
TEXT: Any = {"model": "tiny", "prompt": "hi", "max_tokens": 60}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}
SCHEMA["additionalProperties"] = False
OBJECT, YES, RULES = '{"n": 7}', "yes", 'root ::= "y" "es"'


@pytest.fixture(scope="module")
def server(scripted: Serve) -> Iterator[Running]:
    with scripted("no way", HYBRID, slots=1) as running:
        yield running


def answers(running: Running, **how: Any) -> list[str]:
    """Of a chat and a completion."""
    client = running.client()
    chat = client.chat.completions.create(**ASK, extra_body=how).choices[0].message.content
    return [chat, client.completions.create(**TEXT, extra_body=how).choices[0].text]


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, OBJECT),
        ({"response_format": {"type": "json_object", "value": SCHEMA}}, OBJECT),
        ({"response_format": {"type": "json", "value": SCHEMA}}, OBJECT),
        (
            {"response_format": {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}},
            OBJECT,
        ),
        ({"response_format": {"type": "regex", "value": "y(e)s"}}, YES),
        ({"response_format": {"type": "ebnf", "grammar": RULES}}, YES),
        ({"response_format": {"type": "choice", "choice": ["yes"]}}, YES),
        ({"structured_outputs": {"json": SCHEMA}}, OBJECT),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, OBJECT),
        ({"structured_outputs": {"regex": "y(e)s"}}, YES),
        ({"structured_outputs": {"choice": ["yes"]}}, YES),
        ({"structured_outputs": {"grammar": RULES}}, YES),
        ({"structured_outputs": {"grammar": 'start: "yes"'}}, YES),
        ({"guided_json": SCHEMA}, OBJECT),
        ({"guided_regex": "y(e)s"}, YES),
        ({"guided_choice": ["yes"]}, YES),
        ({"guided_grammar": RULES}, YES),
        ({"regex": "y(e)s"}, YES),
        ({"ebnf": RULES}, YES),
        ({"grammar": RULES}, YES),
        ({"json_schema": SCHEMA}, OBJECT),
    ],
)
def test_every_way_to_a_format(server: Running, how: Any, wanted: str) -> None:
    if wanted is OBJECT:
        assert [json.loads(one) for one in answers(server, **how)[:1]] == [json.loads(OBJECT)]
    else:
        assert answers(server, **how) == [wanted, wanted]


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"regex": "a", "ebnf": RULES}, "and .* say what form"),
        ({"guided_json": "no json"}, "JSON"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "and .* say what form"),
        ({"response_format": {"type": "text", "value": "a"}}, "value"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "goes with"),
        ({"response_format": {"type": "regex", "pattern": "a", "value": "b"}}, "value"),
        ({"ebnf": 'root ::= "a'}, "cannot be used"),
        ({"ebnf": "root ::= " + "(" * 9000}, "cannot be used"),
        ({"guided_regex": "("}, "cannot be used"),
        ({"reasoning_effort": "wild"}, "reasoning_effort"),
    ],
)
def test_what_is_no_format(server: Running, how: Any, match: str) -> None:
    with pytest.raises(openai.BadRequestError, match=match):
        server.client().chat.completions.create(**ASK, extra_body=how)


def test_degrees_of_thinking(server: Running) -> None:
    """There is one, and none."""
    count = lambda **how: (
        server.client().chat.completions.create(**ASK, extra_body=how).usage.prompt_tokens
    )
    free = count()
    for effort in ("minimal", "low", "medium", "high", "xhigh", "max"):
        assert count(reasoning_effort=effort) == free
    assert count(reasoning_effort="none") > free  # an empty thought


def test_tokens_are_returned(server: Running) -> None:
    tokenizer, client = server.model.tokenizer, server.client()
    how = {"extra_body": {"return_token_ids": True}, "stop": "<|im_end|>"}
    made = client.chat.completions.create(**ASK, **how).to_dict()
    said = made["choices"][0]["token_ids"]
    assert tokenizer.decode(said) == "no way<|im_end|>"
    assert len(said) == made["usage"]["completion_tokens"]
    assert len(made["prompt_token_ids"]) == made["usage"]["prompt_tokens"]
    text = client.completions.create(**TEXT, **how).to_dict()["choices"][0]
    assert text["prompt_token_ids"] == tokenizer.encode("hi")
    assert text["token_ids"] == said
    for create, ask in ((client.chat.completions, ASK), (client.completions, TEXT)):
        chunks = [chunk.to_dict() for chunk in create.create(**ask, stream=True, **how)]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert [id for choice in choices for id in choice.get("token_ids", ())] == said
        prompts = [
            one["prompt_token_ids"] for one in (*chunks, *choices) if "prompt_token_ids" in one
        ]
        assert prompts in ([made["prompt_token_ids"]], [tokenizer.encode("hi")])
    assert "token_ids" not in json.dumps(client.chat.completions.create(**ASK).to_dict())


def test_a_stop_string_is_told(server: Running) -> None:
    assert answers(server, stop="wa") == ["no ", "no "]
    assert answers(server, stop="wa", include_stop_str_in_output=True) == ["no wa", "no wa"]
    how = {"logprobs": True, "extra_body": {"include_stop_str_in_output": True}, "stop": "wa"}
    choice = server.client().chat.completions.create(**ASK, **how).choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content).startswith("no wa")


def test_control_tokens_are_told(scripted: Serve) -> None:
    with scripted("a") as running:
        device, specials = running.script, running.model.tokenizer.specials
        device.says = [*device.says, specials["<|im_start|>"], *device.says]
        ask = TEXT | {"max_tokens": 3}
        create = running.client().completions.create
        text = create(**ask).choices[0].text
        whole = create(**ask, extra_body={"skip_special_tokens": False}).choices[0].text
        assert (text, whole) == ("aa", "a<|im_start|>a")


def test_priorities_are_among_ones_own(scripted: Serve) -> None:
    line: FairQueue[tuple[int, str]] = FairQueue(9, lambda item: item[0])
    for owner, item in (("a", (0, "1")), ("b", (5, "2")), ("a", (-1, "3")), ("a", (0, "4"))):
        line.put(owner, item)
    assert [line.take()[1] for _ in range(4)] == ["3", "2", "1", "4"]
    with scripted(slots=1) as running:
        schedule, taken = running.model.engine._schedule, list[int]()
        order = schedule.queue._order
        schedule.queue._order = lambda request: taken.append(request.priority) or order(request)  # type: ignore[func-returns-value]
        assert httpx.post(running.url + CHAT, json=ASK | {"priority": -3}).status_code == 200
        assert set(taken) == {-3}
