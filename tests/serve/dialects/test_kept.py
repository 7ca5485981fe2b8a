"""Responses that are kept: read, gone on from and forgotten by whom they belong to."""

from typing import Any

import openai
import pytest

from serve.http.keys import Keys
from serve.lanes import Lane
from serve.schemas.responses import sealed
from tests.serve.conftest import Serve
from tests.serve.dialects.test_responses import ASK
from tests.serve.text.test_thinking import HYBRID


def test_what_is_kept(scripted: Serve) -> None:
    with scripted() as running:
        client = running.client()
        made = client.responses.create(**ASK)
        assert client.responses.retrieve(made.id).output_text == made.output_text
        assert made.to_dict()["store"] is True
        client.responses.delete(made.id)
        forgotten = client.responses.create(**ASK, store=False)
        assert forgotten.to_dict()["store"] is False
        for id in (made.id, forgotten.id, "resp_unheard"):
            with pytest.raises(openai.NotFoundError, match="not stored"):
                client.responses.retrieve(id)
            with pytest.raises(openai.NotFoundError):
                client.responses.delete(id)
            with pytest.raises(openai.NotFoundError):
                client.responses.cancel(id)
            with pytest.raises(openai.BadRequestError, match="not stored") as caught:
                client.responses.create(**ASK, previous_response_id=id)
            assert caught.value.code == "previous_response_not_found"
        with pytest.raises(openai.BadRequestError, match="completed"):
            client.responses.cancel(client.responses.create(**ASK).id)


def test_responses_belong_to_a_key(scripted: Serve) -> None:
    keys = Keys({"a" * 16: "ann", "b" * 16: "bob"})
    with scripted(keys=keys) as running:
        ann, bob = running.client("a" * 16), running.client("b" * 16)
        made = ann.responses.create(**ASK)
        assert ann.responses.retrieve(made.id).id == made.id
        for ask in (bob.responses.retrieve, bob.responses.delete, bob.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(made.id)
        reference: Any = [{"type": "item_reference", "id": made.output[0].id}]
        for how in ({"previous_response_id": made.id}, {"input": reference}):
            with pytest.raises(openai.BadRequestError):
                bob.responses.create(**ASK | how)


def test_a_server_without_memory(scripted: Serve) -> None:
    with scripted(memory_bytes=0) as running:
        made = running.client().responses.create(**ASK, store=True)
        assert made.to_dict()["store"] is False
        with pytest.raises(openai.NotFoundError):
            running.client().responses.retrieve(made.id)


def test_what_is_kept_is_long_work(scripted: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small request that goes on from much, or reads it, is where a large body would be."""
    with scripted(max_body=2**20) as running:
        sizes, lanes = list[int](), running.service.lanes
        for_text = lanes.for_text

        def noted(size: int) -> Lane:
            sizes.append(size)
            return for_text(size)

        monkeypatch.setattr(lanes, "for_text", noted)
        client = running.client()
        metadata: Any = {str(n): "x" * 512 for n in range(16)}
        made = client.responses.create(**ASK, metadata=metadata)
        reference: Any = [{"type": "item_reference", "id": made.output[0].id}]
        said = [{"role": "user", "content": "and"}]
        asks: Any = (
            lambda: client.responses.create(**ASK, previous_response_id=made.id),
            lambda: client.responses.create(**ASK | {"input": [*said, *reference, *said]}),
            lambda: client.responses.retrieve(made.id),
        )
        for ask in asks:
            sizes.clear()
            ask()
            assert sizes[0] > 16 * 512


def test_what_is_referred_to_is_no_larger_than_a_body(scripted: Serve) -> None:
    """However small the request is that names it, and however often."""
    with scripted("la " * 100, max_body=2048, length=4096) as running:
        client, hi = running.client(), {"role": "user", "content": "hi"}
        ask: Any = ASK | {"max_output_tokens": 300}
        made = client.responses.create(**ask)
        item: Any = made.output[0]
        reference = {"type": "item_reference", "id": item.id}
        fits: Any = [hi, *[reference] * 2, hi]
        assert client.responses.create(**ask | {"input": fits}).output
        prompts = len(running.script.log)
        many: Any = [hi, *[reference] * 20, hi]
        with pytest.raises(openai.APIStatusError, match="larger than 2048 bytes") as caught:
            client.responses.create(**ask | {"input": many})
        assert (caught.value.status_code, len(running.script.log)) == (413, prompts)

        def goes_on(id: str, times: int) -> None:
            more = client.responses.create(**ask, previous_response_id=id)
            if times:
                goes_on(more.id, times - 1)

        with pytest.raises(openai.APIStatusError, match="larger than 2048 bytes"):
            goes_on(made.id, 9)


def test_what_is_read_of_a_response(scripted: Serve) -> None:
    with scripted("<think>\nso\n</think>\n\nHello", HYBRID) as running:
        client = running.client()
        made = client.responses.create(**ASK)
        read = client.responses.retrieve
        thought = read(made.id, include=["reasoning.encrypted_content"]).output[0]
        assert thought.encrypted_content == sealed("so")
        assert read(made.id, stream=False).output == made.output
        scored = client.responses.create(**ASK, include=["message.output_text.logprobs"])
        both: Any = ["message.output_text.logprobs", "web_search_call.results"]
        assert read(scored.id, include=both).output == scored.output
        for how, name in (
            ({"include": ["message.output_text.logprobs"]}, "include"),
            ({"include": ["everything"]}, "include"),
            ({"extra_query": {"starting_after": 3}}, "starting_after"),
            ({"extra_query": {"stream": "true"}}, "stream"),
            ({"extra_query": {"fields": "id"}}, "fields"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                read(made.id, **how)
            assert caught.value.param == name
