"""Bodies made to hurt: refused with short errors, in bounded time and memory."""

import json
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from serve.http.body import MAX_CONTAINERS, MAX_DEPTH, MAX_VALUES, parse, value
from serve.http.errors import ApiError
from serve.schemas.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import ASK, JSON, fault

MOST = 4 * 2**20  # bytes of a body
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def filled(before: str, item: str, after: str, joint: str = ",") -> bytes:
    """As many items as a body holds."""
    count = (MOST - len(before) - len(after)) // (len(item) + len(joint))
    return (before + joint.join([item] * count) + after).encode()


def keys(before: str, item: str, after: str) -> bytes:
    """The same, each item with a number in it."""
    count = (MOST - len(before) - len(after)) // (len(item) + 6)
    return (before + ",".join(item % number for number in range(count)) + after).encode()


ASKED = '{"model": "tiny", "messages": [{"role": "user", "content": "a"}], '
BOMBS: dict[str, tuple[type[BaseModel], bytes]] = {
    "objects as prompts": (CompletionRequest, filled('{"model": "tiny", "prompt": [', "{}", "]}")),
    "lists as prompts": (CompletionRequest, filled('{"model": "tiny", "prompt": [', "[]", "]}")),
    "numbers below 0": (DetokenizeRequest, filled('{"tokens": [', "-1", "]}")),
    "ids": (DetokenizeRequest, filled('{"tokens": [', "1", "]}")),
    "a few numbers below 0": (DetokenizeRequest, filled('{"tokens": [', "-1" + " " * 20, "]}")),
    "a bad id at the end": (CompletionRequest, filled('{"prompt": [', "151000", ', ""]}')),
    "unknown keys": (ChatRequest, keys(ASKED, '"k%d": 1', "}")),
    "few long unknown keys": (ChatRequest, keys(ASKED, '"' + "k" * 100 + '%d": 1', "}")),
    "an unknown key": (ChatRequest, filled(ASKED + '"', "k", '": 1}', "")),
    "biases": (ChatRequest, keys(ASKED + '"logit_bias": {', '"%d": "x"', "}}")),
    "long biases": (ChatRequest, keys(ASKED + '"logit_bias": {', '"' + "9" * 99 + '%d": 1', "}}")),
    "messages": (ChatRequest, filled('{"model": "a", "messages": [', '{"role": 1}', "]}")),
    "good messages": (
        ChatRequest,
        filled('{"model": "a", "messages": [', '{"role": "user", "content": "a"}', "]}"),
    ),
    "parts": (
        ChatRequest,
        filled('{"messages": [{"role": "user", "content": [', '{"type": "x"}', "]}]}"),
    ),
    "tools": (ChatRequest, filled(ASKED + '"tools": [', '{"type": 1}', "]}")),
    "stops": (ChatRequest, filled(ASKED + '"stop": [', '""', "]}")),
    "a long role": (ChatRequest, filled('{"messages": [{"role": "', "x", '"}]}', "")),
    "a long type": (
        ChatRequest,
        filled('{"messages": [{"role": "user", "content": [{"type": "', "x", '"}]}]}', ""),
    ),
    "a long number": (ChatRequest, filled(ASKED + '"seed": ', "1", "}", "")),
    "a long fraction": (ChatRequest, filled(ASKED + '"top_p": 0.', "1", "}", "")),
    "long numbers": (DetokenizeRequest, filled('{"tokens": [', "1" * 40, "]}")),
    "depth": (ChatRequest, b"[" * MOST),
    "objects in objects": (ChatRequest, b'{"a":' * (MOST // 5)),
    "quotes": (ChatRequest, b'"' * MOST),
    "backslashes": (ChatRequest, b'{"' + b"\\" * (MOST - 2)),
    "half characters": (TokenizeRequest, filled('{"prompt": "', r"\ud800", '"}', "")),
    "spaces": (ChatRequest, b" " * MOST),
    "zeros": (ChatRequest, b"\0" * MOST),
    "a schema": (
        ChatRequest,
        keys(ASKED + '"tools": [{"type": "function", "function": {"n": {', '"a%d": {}', "}}}]}"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bodies_cost_little(name: str) -> None:
    """At most 100 MB beside the body and a second of the processor, for an answer of 1 kB."""
    kind, content = BOMBS[name]
    began = time.thread_time()
    with pytest.raises(ApiError) as caught:
        parse(kind, content)
    assert time.thread_time() - began < 1
    assert caught.value.status == 400
    assert len(json.dumps(caught.value.body)) < 1000
    tracemalloc.start()
    try:
        with pytest.raises(ApiError):
            parse(kind, content)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def refused(content: Any) -> Any:
    with pytest.raises(ApiError) as caught:
        value(content)
    return caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "a stands twice"),
        (b'[{"a": {"b": 1, "b": 1}}]', "b stands twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "1e999 is no number"),
        (b"[%s]" % (b"1" * 41), "more than 40 characters"),
        (rb'["\ud800"]', "not JSON in UTF-8"),
        (rb'["\uDC00\uD800"]', "not JSON in UTF-8"),
        (b'["\xff"]', "not JSON in UTF-8"),
        (b"[%s]" % b",".join([b"1"] * (MAX_VALUES + 1)), f"at most {MAX_VALUES}"),
        (b"[%s]" % b",".join([b"[]"] * MAX_CONTAINERS), f"at most {MAX_CONTAINERS}"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"at most {MAX_DEPTH}"),
        (b'{"a": 1,}', "line 1 column"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_not_taken_as_json(content: Any, message: str) -> None:
    assert message in refused(content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[%s]" % b",".join([b"1"] * MAX_VALUES),
        b'["' + b"[" * 100_000 + b'"]',
        rb'["\\\"[[[{{{,,,\\", "\"", {"\\": []}]',
        rb'["\ud83d\ude00", "\\ud800"]',
        "\ufeff{}".encode(),
        b"[%s, 1.5, -0, 1e-3]" % (b"1" * 40),
    ],
)
def test_what_is(content: Any) -> None:
    """Brackets and commas in a text are text."""
    assert value(content) == json.loads(content)


@pytest.fixture(scope="module")
def server(scripted: Serve) -> Iterator[Running]:
    with scripted() as running:
        yield running


@pytest.mark.parametrize(
    "name", ["9" * 5000, "007", "-1", "+1", " 1", "1_0", "٣", "1" * 9, "", "a"]
)
def test_biases_of_what_is_no_id(server: Running, name: str) -> None:
    answer = httpx.post(server.url + CHAT, json=ASK | {"logit_bias": {name: 1}})
    error = fault(answer, 400, "wanted ids from 0 to")
    assert error["param"] == "logit_bias"
    assert len(answer.text) < 500


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (CHAT, ASK | {"stop_token_ids": [2**31 - 1]}, "stop_token_ids"),
        (TEXT, {"model": "tiny", "prompt": [2**31 - 1]}, "prompt"),
        (TEXT, {"model": "tiny", "prompt": [[1], [2**31 - 1]]}, "prompt"),
        ("/detokenize", {"tokens": [2**31 - 1]}, "tokens"),
    ],
)
def test_ids_past_the_vocabulary(server: Running, path: str, change: Any, param: str) -> None:
    assert fault(httpx.post(server.url + path, json=change), 400)["param"] == param


def test_every_bomb_over_http(server: Running) -> None:
    """The server answers others meanwhile."""
    paths = {CompletionRequest: TEXT, ChatRequest: CHAT}
    paths |= {DetokenizeRequest: "/detokenize", TokenizeRequest: "/tokenize"}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for kind, content in BOMBS.values():
            answer = client.post(paths[kind], content=content, headers=JSON)
            assert answer.status_code == 400
            assert len(answer.content) < 1000
    assert httpx.post(server.url + CHAT, json=ASK).status_code == 200


def test_a_text_that_cannot_fit_is_not_tokenised(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.model.tokenizer, "encode", None)
    text = "a" * 1_000_000
    for path, asked in (
        (TEXT, {"prompt": text}),
        (CHAT, {"messages": [{"role": "user", "content": text}]}),
    ):
        error = fault(httpx.post(server.url + path, json={"model": "tiny"} | asked), 400)
        assert error["code"] == "context_length_exceeded"
        assert "--max-length" in error["message"]


def test_a_word_without_end_is_not_tokenised(server: Running) -> None:
    for path, asked in (
        ("/tokenize", {"prompt": "字" * 400_000}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a" * 1_100_000}]}),
    ):
        message = fault(httpx.post(server.url + path, json=asked), 400)["message"]
        assert "at most 1048576" in message
    whole = httpx.post(server.url + "/tokenize", json={"prompt": "word " * 300_000})
    assert whole.status_code == 200
