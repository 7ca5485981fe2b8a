"""What clients really send: their own messages sent back, and the extensions of other servers."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jinja2
import openai
import pydantic
import pytest

from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import CHAT, fault
from tests.serve.text.test_tools import ASK, HERMES, TEMPLATE, TOOLS, WEATHER


class Weather(pydantic.BaseModel):
    city: str


HI = ASK["messages"]


def spoken(message: Any) -> Iterator[Any]:
    """The forms in which openai-python and openai-node send an answer back."""
    yield message
    yield message.model_dump(warnings=False)
    yield message.to_dict(warnings=False)
    yield message.model_dump(exclude_none=True, warnings=False)
    full = message.model_dump(warnings=False)
    full |= {"annotations": [], "audio": None, "function_call": None, "parsed": {"a": 1}}
    for index, call in enumerate(full.get("tool_calls") or ()):
        call |= {"index": index}
        call["function"]["parsed_arguments"] = {"city": "Rome"}
    yield full


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of openai's own parsed
@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("text", ["Hello.", HERMES, '{"city": "Rome"}'])
def test_answers_are_sent_back(scripted: Serve, template: str | None, text: str) -> None:
    with scripted(text, template, length=2048) as running:
        client = running.client()
        answer = client.chat.completions.create(**ASK, tools=TOOLS).choices[0].message
        answers = [answer]
        if text.startswith("{"):
            parsed = client.chat.completions.parse(**ASK, response_format=Weather)
            answers.append(parsed.choices[0].message)
        for first in answers:
            counts = set()
            for said in spoken(first):
                turns = [*HI, said]
                for call in first.tool_calls or ():
                    turns.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
                turns += [] if first.tool_calls else HI
                made = client.chat.completions.create(**ASK | {"messages": turns})
                counts.add(made.usage.prompt_tokens)
            assert len(counts) == 1


def test_a_stream_is_sent_back(scripted: Serve) -> None:
    with scripted(HERMES, TEMPLATE) as running:
        client = running.client()
        with client.chat.completions.stream(**ASK, tools=TOOLS) as stream:
            message = stream.get_final_completion().choices[0].message
        (call,) = message.tool_calls
        turns = [*HI, message, {"role": "tool", "tool_call_id": call.id, "content": "x"}]
        assert client.chat.completions.create(**ASK | {"messages": turns}).choices


def count(running: Running, **body: Any) -> Any:
    answer = httpx.post(f"{running.url}/tokenize", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["tokens"]


def test_empty_arguments_are_none(scripted: Serve) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "time", "arguments": ""}}
    turns = lambda arguments: [
        *HI,
        {"role": "assistant", "tool_calls": [call | {"function": {"name": "time", **arguments}}]},
        {"role": "tool", "tool_call_id": "a", "content": "noon"},
    ]
    for template in (None, TEMPLATE):
        with scripted(template=template) as running:
            wanted = count(running, messages=turns({"arguments": "{}"}))
            for arguments in ({"arguments": ""}, {"arguments": None}, {}):
                assert count(running, messages=turns(arguments)) == wanted


def test_tools_are_shown_as_they_were_sent(scripted: Serve) -> None:
    """As transformers renders them: in the client's order, and nothing beside."""
    bare = {"name": "f"}
    turned = {"parameters": {"b": None, "a": 1}, "strict": False, "name": "g"}
    tools = [*TOOLS, *({"type": "function", "function": one} for one in (bare, turned))]
    tools.append({"function": bare, "type": "function"})
    with scripted(template=TEMPLATE) as running:
        source = TEMPLATE.replace("tools | tojson", "shown").replace(
            "{{ m.tool_calls | tojson }}", ""
        )
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        text = environment.from_string(source).render(
            tools=tools,
            shown=json.dumps(tools, ensure_ascii=False),
            messages=HI,
            add_generation_prompt=True,
        )
        wanted = running.model.tokenizer.encode(text, specials=True)
        sent: Any = copy.deepcopy(tools)
        sent[0]["function"]["strict"] = sent[1]["cache_control"] = None
        assert count(running, messages=HI, tools=sent) == wanted


def test_system_messages_stand_where_they_stand(scripted: Serve) -> None:
    """For the original: those at the start are one, later ones have a place of their own."""
    with scripted() as running:
        encode = lambda text: running.model.tokenizer.encode(text, specials=True)
        system = lambda text: {"role": "system", "content": text}
        said = {"role": "assistant", "content": "b"}
        segment = "<|im_start|>{}\n{}<|im_end|>".format
        turns = [system("1"), system("2"), *HI, said, {"role": "developer", "content": "3"}, *HI]
        texts = [("system", "1\n\n2"), ("user", "hi"), ("assistant", "b"), ("system", "3")]
        wanted = "\n".join(segment(*one) for one in [*texts, ("user", "hi")])
        opening = "\n<|im_start|>assistant\n"
        assert count(running, messages=turns) == encode(wanted + opening)
        behind = "\n".join(segment(*one) for one in [*texts[:2], ("system", "4")])
        assert count(running, messages=[*turns[:3], system("4")]) == encode(behind + opening)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_message_goes_on(scripted: Serve, template: str | None) -> None:
    with scripted(" world", template) as running:
        encode = lambda text: running.model.tokenizer.encode(text, specials=True)
        turns = [*HI, {"role": "assistant", "content": "Hello, "}]
        how = {"add_generation_prompt": False, "continue_final_message": True}
        ids = count(running, messages=turns, **how)
        end = encode("<|im_start|>assistant\nHello, ")
        assert ids[-len(end) :] == end
        closed = count(running, messages=turns, add_generation_prompt=False)
        assert running.model.tokenizer.decode(closed).strip().endswith("Hello, <|im_end|>") or (
            template is None and running.model.tokenizer.decode(closed).endswith("Hello,<|im_end|>")
        )
        create = running.client().chat.completions.create
        made = create(**ASK | {"messages": turns}, extra_body=how).choices[0]
        assert made.message.content == " world"
        user = count(running, messages=HI, **how)
        assert user[-1:] == encode("hi")[-1:]
        with pytest.raises(openai.BadRequestError, match="add_generation_prompt"):
            create(**ASK | {"messages": turns}, extra_body={"continue_final_message": True})


def test_thinking_that_happens_anyway(scripted: Serve) -> None:
    for template in (None, TEMPLATE):
        with scripted(template=template) as running:
            create = running.client().chat.completions.create
            for ask in ({"enable_thinking": False}, {"reasoning_effort": "none"}):
                assert create(**ASK, extra_body=ask).choices[0].message.content == "Hello, world"
            with pytest.raises(openai.BadRequestError, match="enable_thinking"):
                create(**ASK, extra_body={"enable_thinking": True})


@pytest.mark.parametrize("stop", ["<|im_end|>", "<|endoftext|>", ["never", "<|endoftext|>"]])
def test_a_control_token_stops(scripted: Serve, stop: Any) -> None:
    with scripted("Hello") as running:
        device, specials = running.script, running.model.tokenizer.specials
        name = stop if isinstance(stop, str) else stop[-1]
        device.says = [*device.says, specials[name], *device.says]
        ask = ASK | {"stop": stop, "extra_body": {"ignore_eos": True}}
        choice = running.client().chat.completions.create(**ask).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("Hello", "stop")


def test_a_middle_is_filled(scripted: Serve) -> None:
    with scripted("x") as running:
        ask = {"model": "tiny", "prompt": "def f(", "suffix": "): pass"}
        answer = httpx.post(f"{running.url}/v1/completions", json=ask)
        assert fault(answer, 400, "fim_prefix")["param"] == "suffix"
        tokenizer: Any = running.model.tokenizer
        names = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
        held = dict(tokenizer.specials)
        try:
            tokenizer.specials.update(zip(names, (300, 301, 302), strict=True))
            answer = httpx.post(f"{running.url}/v1/completions", json=ask).json()
            assert answer["choices"][0]["text"] == "x"
            parts = len(tokenizer.encode("def f(")) + len(tokenizer.encode("): pass"))
            assert answer["usage"]["prompt_tokens"] == parts + 3
        finally:
            tokenizer.specials.clear()
            tokenizer.specials.update(held)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_call_that_was_cut_is_partial(scripted: Serve, template: str | None) -> None:
    with scripted("no", template) as running:
        how = {"tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required"}
        create = running.client().chat.completions.create
        whole = create(**ASK, **how)
        full = whole.choices[0].message.tool_calls[0].function
        partial = 0
        for most in range(1, whole.usage.completion_tokens):
            choice = create(**ASK | {"max_tokens": most}, **how).choices[0]
            assert choice.finish_reason == "length"
            for call in choice.message.tool_calls or ():
                assert call.function.name == full.name
                spaced = [one.replace(" ", "") for one in (full.arguments, call.function.arguments)]
                assert spaced[0].startswith(spaced[1])
                partial += 0 < len(call.function.arguments) < len(full.arguments)
        assert partial > 3


def test_several_names(scripted: Serve) -> None:
    with scripted(name=("tiny", "gpt-4o", "other")) as running:
        client = running.client()
        assert [model.id for model in client.models.list()] == ["tiny", "gpt-4o", "other"]
        for name in ("tiny", "gpt-4o", "other"):
            assert client.chat.completions.create(**ASK | {"model": name}).model == name
        for path, body in ((CHAT, {"messages": HI}), ("/v1/completions", {"prompt": "a"})):
            answer = httpx.post(running.url + path, json={**body, "max_tokens": 4})
            assert answer.json()["model"] == "tiny"  # where none is named


def test_bodies_as_they_come(scripted: Serve) -> None:
    with scripted() as running:
        body = json.dumps(ASK).encode()
        post = lambda content, **headers: httpx.post(
            running.url + CHAT,
            content=content,
            headers={"Content-Type": "application/json", **headers},
        )
        assert post(b"\xef\xbb\xbf" + body).status_code == 200
        fault(post(body, **{"Content-Encoding": "gzip"}), 415, "gzip")
