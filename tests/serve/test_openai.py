"""The official client against a running server."""

import openai
import pytest

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "the dog"}]}


@pytest.fixture(scope="module")
def client(tiny):
    return tiny.client()


def text_of(stream):
    chunks = list(stream)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'other'") as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_an_answer(client, tiny):
    answer = client.chat.completions.create(**ASK, seed=1)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 24  # the checkpoint's own limit
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    assert answer.object == "chat.completion"


def test_a_stream_is_the_same_answer(client):
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
