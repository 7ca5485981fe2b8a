"""The official client against a running server."""

import json
from typing import Any

import jax
import numpy as np
import openai
import pytest

import qwen_jax
from qwen_jax.nn.model import Qwen
from tests.serve.conftest import Running, Serve

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "the dog"}]}
THINK_NOT = {"enable_thinking": False}


@pytest.fixture(scope="module")
def client(tiny: Running) -> Any:
    return tiny.client()


def text_of(stream: Any) -> tuple[str, list[Any]]:
    chunks = list(stream)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'other'") as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_an_answer(client: Any, tiny: Running) -> None:
    answer = client.chat.completions.create(**ASK, seed=1)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 24  # the checkpoint's own limit
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    assert answer.object == "chat.completion"


def test_a_stream_is_the_same_answer(client: Any) -> None:
    whole = client.chat.completions.create(**ASK, seed=1)
    options = {"include_usage": True}
    stream = client.chat.completions.create(**ASK, seed=1, stream=True, stream_options=options)
    text, chunks = text_of(stream)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    assert len([c for c in chunks if c.choices]) > 4  # it came in pieces


def test_several_answers(client: Any) -> None:
    """Each like the one alone: choice i has seed + i."""
    together = client.chat.completions.create(**ASK, n=3, seed=5)
    alone = [client.chat.completions.create(**ASK, seed=5 + n) for n in range(3)]
    texts = [choice.message.content for choice in together.choices]
    assert texts == [answer.choices[0].message.content for answer in alone]
    assert len(set(texts)) == 3
    assert together.usage.completion_tokens == 72
    assert together.usage.prompt_tokens == alone[0].usage.prompt_tokens
    stream = client.chat.completions.create(**ASK, n=3, seed=5, stream=True)
    found = ["", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            found[choice.index] += choice.delta.content or ""
    assert found == texts


def test_seeds_and_greedy(client: Any) -> None:
    ask = lambda **how: client.chat.completions.create(**ASK, **how).choices[0].message.content
    assert ask(seed=-7) == ask(seed=-7) != ask(seed=8)
    assert ask() != ask()
    assert ask(temperature=0) == ask(temperature=0, seed=9) == ask(top_p=1e-9, temperature=1)
    assert ask(extra_body={"top_k": 1}) == ask(temperature=0)


def test_stop_strings(client: Any) -> None:
    whole = client.chat.completions.create(**ASK, seed=1).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    cut = client.chat.completions.create(**ASK, seed=1, stop=[stop, "never there"])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 24
    stream = client.chat.completions.create(**ASK, seed=1, stop=stop, stream=True)
    assert text_of(stream)[0] == cut.choices[0].message.content


def test_what_began_like_a_stop_string_is_text(scripted: Serve) -> None:
    with scripted("Hello, world") as running:
        ask = running.client().chat.completions.create
        assert ask(**ASK, stop="ld!").choices[0].message.content == "Hello, world"
        assert text_of(ask(**ASK, stop="ld!", stream=True))[0] == "Hello, world"


def test_stop_ids(client: Any, tiny: Running) -> None:
    encode = tiny.model.tokenizer.encode
    logged = client.chat.completions.create(**ASK, seed=1, logprobs=True).choices[0]
    said = [encode(entry.token) for entry in logged.logprobs.content]
    place = next(n for n, ids in enumerate(said) if n > 2 and len(ids) == 1 and ids not in said[:n])
    ask = lambda least: client.chat.completions.create(
        **ASK, seed=1, extra_body={"stop_token_ids": said[place], "min_tokens": least}
    )
    cut = ask(0)
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens == place + 1
    assert ask(place + 5).usage.completion_tokens > place + 1


def test_logprobs(client: Any) -> None:
    options = {"logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**ASK, temperature=0, max_tokens=6, **options)
    (choice,) = answer.choices
    entries = choice.logprobs.content
    assert len(entries) == 6
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob
        assert entry.bytes == entry.top_logprobs[0].bytes
    joined = b"".join(bytes(entry.bytes) for entry in entries)
    assert joined.decode("utf-8", "replace") == choice.message.content
    stream = client.chat.completions.create(
        **ASK, temperature=0, max_tokens=6, stream=True, **options
    )
    streamed = [
        entry
        for chunk in stream
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == entries


def test_logit_bias(client: Any, tiny: Running) -> None:
    (id,) = tiny.model.tokenizer.encode("!")
    answer = client.chat.completions.create(**ASK, max_tokens=5, logit_bias={str(id): 100})
    assert answer.choices[0].message.content == "!!!!!"


def test_json_schema(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    answer = client.chat.completions.create(**ASK, response_format=wanted, max_tokens=88, n=2)
    for choice in answer.choices:
        assert 0 <= json.loads(choice.message.content)["age"] <= 99
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "regex", "pattern": "(yes|no) [0-9]{3}"},
        {"type": "grammar", "grammar": 'start: ("yes" | "no") " " /[0-9][0-9][0-9]/'},
    ],
)
def test_patterns_and_grammars(client: Any, wanted: dict[str, str]) -> None:
    """Streaming, beside answers that are free."""
    free = client.completions.create(model="tiny", prompt="the fox", seed=3, max_tokens=9)
    stream = client.chat.completions.create(
        **ASK, extra_body={"response_format": wanted}, stream=True
    )
    beside = client.completions.create(model="tiny", prompt="the fox", seed=3, max_tokens=9)
    text, _ = text_of(stream)
    assert text.split()[0] in ("yes", "no")
    assert len(text.split()[1]) == 3
    assert beside.choices[0].text == free.choices[0].text


def test_completions(client: Any, tiny: Running) -> None:
    ids = tiny.model.tokenizer.encode("the fox")
    texts = [
        client.completions.create(model="tiny", prompt=prompt, seed=3).choices[0].text
        for prompt in ("the fox", ids, [ids], ["the fox"])
    ]
    assert len(set(texts)) == 1
    both = client.completions.create(model="tiny", prompt=["the fox", "a"], seed=3, n=2)
    assert both.choices[0].text == texts[0]
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.usage.completion_tokens == 4 * 16
    stream = client.completions.create(model="tiny", prompt="the fox", seed=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == texts[0]


def test_echo_scores_the_prompt(client: Any, tiny: Running, babbler: Qwen) -> None:
    """Over two chunks, against the logits of the whole text; then the answer goes on."""
    ids = tiny.model.tokenizer.encode("the quick brown fox " * 10)
    ask = {"model": "tiny", "prompt": ids, "temperature": 0, "logprobs": 2, "echo": True}
    (scored,) = client.completions.create(**ask, max_tokens=0).choices
    (longer,) = client.completions.create(**ask, max_tokens=4).choices
    assert len(scored.logprobs.tokens) == len(ids) > 65
    assert scored.text == tiny.model.tokenizer.decode(ids)
    assert longer.text.startswith(scored.text)
    assert longer.logprobs.tokens[: len(ids)] == scored.logprobs.tokens
    assert scored.logprobs.token_logprobs[0] is None
    logprobs = jax.nn.log_softmax(qwen_jax.logits(babbler, [ids])[0])
    wanted = logprobs[np.arange(len(ids) - 1), np.asarray(ids[1:])]
    np.testing.assert_allclose(scored.logprobs.token_logprobs[1:], wanted, atol=1e-4)
    best = [max(one.values()) for one in scored.logprobs.top_logprobs[1:]]
    np.testing.assert_allclose(best, logprobs.max(axis=-1)[:-1], atol=1e-4)
    for own, top in list(
        zip(longer.logprobs.token_logprobs, longer.logprobs.top_logprobs, strict=True)
    )[-4:]:
        assert own == max(top.values())  # greedy: lm-eval compares them exactly


def test_a_system_prompt_is_reused(client: Any, tiny: Running) -> None:
    messages = [{"role": "system", "content": "the quick brown fox jumps over " * 5}]
    ask = lambda word: client.chat.completions.create(
        model="tiny", messages=[*messages, {"role": "user", "content": word}], seed=1, max_tokens=9
    )
    first, other = ask("dog"), ask("the lazy dog")
    again = ask("dog")
    assert again.choices[0].message.content == first.choices[0].message.content
    assert other.usage.prompt_tokens_details.cached_tokens == 64
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 101.0}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"max_tokens": 1000}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a " * 200}]}, "messages"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logit_bias": {"416": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, None),
        ({"extra_body": {"best_of": 2}}, "best_of"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
        ({"extra_body": {"frequency_penalty": True}}, "frequency_penalty"),
        ({"extra_body": {"seed": 2**64}}, "seed"),
        ({"extra_body": {"chat_template_kwargs": {"tools": []}}}, "chat_template_kwargs.tools"),
        ({"extra_body": {"enable_thinking": True}}, "messages"),
        ({"extra_body": {"enable_thinking": True, "chat_template_kwargs": THINK_NOT}}, None),
    ],
)
def test_refusals_name_the_field(client: Any, change: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK | change)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_tokens_and_back(client: Any, tiny: Running) -> None:
    post = lambda path, **body: client.post(f"{tiny.url}{path}", body=body, cast_to=object)
    tokens = post("/tokenize", prompt="the dog<|im_end|>")
    assert tokens["tokens"] == tiny.model.tokenizer.encode("the dog<|im_end|>", specials=True)
    assert tokens["count"] == len(tokens["tokens"])
    assert post("/detokenize", tokens=tokens["tokens"])["prompt"] == "the dog<|im_end|>"
    chat = post("/tokenize", messages=ASK["messages"])
    answer = client.chat.completions.create(**ASK, max_tokens=1)
    assert chat["count"] == answer.usage.prompt_tokens
