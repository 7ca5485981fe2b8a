"""Whatever clients do, the server answers in OpenAI's form and goes on; its slots come back."""

import gc
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve.schemas.conversation import Message
from tests.patience import until
from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import ASK, CHAT, JSON, LONG, STREAM, connect, drained, ended, fault, head

STRICT = {"name": "x", "strict": True}
_TAKEN = ("qwen_requests_running", "qwen_requests_waiting")


@pytest.fixture(scope="module")
def quick(scripted: Serve) -> Iterator[Running]:
    """Answers of 200 tokens, each of which takes a moment; little time and space for requests."""
    with scripted(
        "la " * 120, seconds=0.02, header_seconds=0.5, body_seconds=0.5, max_body=20_000, queue=8
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def survives(quick: Running) -> Iterator[None]:
    """After every test the server still answers, and nothing is left in its slots."""
    yield
    quick.settle()
    answer = httpx.post(quick.url + CHAT, json=ASK | {"max_tokens": 3})
    assert answer.status_code == 200, answer.text
    assert quick.metric("qwen_engine_failures_total") == 0


# --- clients that leave ------------------------------------------------------------------------
def test_leaving_a_stream_frees_the_slot(quick: Running) -> None:
    with httpx.stream("POST", quick.url + CHAT, json=STREAM) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert quick.metric("qwen_requests_running") == 1
    quick.settle()
    assert quick.metric('qwen_requests_finished_total{reason="cancelled"}') >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_queue(quick: Running, stream: bool) -> None:
    """All slots are taken, four more wait; then all leave."""
    content = json.dumps(LONG | {"stream": stream}).encode()
    connections = [connect(quick) for _ in range(8)]
    for connection in connections:
        connection.sendall(head(len(content)) + content)
    until(lambda: quick.metric("qwen_requests_waiting") == 4)
    for connection in connections:
        connection.close()
    quick.settle()


def test_leaving_in_the_middle_of_a_body(quick: Running) -> None:
    connection = connect(quick)
    connection.sendall(head(1000) + b'{"model"')
    connection.close()


# --- too slow, too large -----------------------------------------------------------------------
@pytest.mark.parametrize("kept", [False, True])
def test_a_slow_head_is_cut_off(quick: Running, kept: bool) -> None:
    """On a fresh connection, and on one that was used before."""
    with connect(quick) as connection:
        if kept:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in connection.recv(65536)
        began = time.monotonic()
        until(lambda: ended(connection, b"G"))
        assert time.monotonic() - began > 0.3


def test_silence_is_cut_off(quick: Running) -> None:
    with connect(quick) as connection:
        assert drained(connection) == b""


def test_a_slow_body_is_cut_off(quick: Running) -> None:
    with connect(quick) as connection:
        connection.sendall(head(1000) + b"{")
        answer = drained(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"the body took longer than 0.5 s"' in answer


def test_a_huge_head(quick: Running) -> None:
    """Of 100 MB, of which the server takes no more than its limit."""
    with connect(quick) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        sent = 0
        try:
            while sent < 100:
                connection.sendall(b"x" * 2**20)
                sent += 1
        except OSError:
            pass
        assert sent < 100


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body(quick: Running, chunked: bool) -> None:
    """Of 1 GB, announced or not."""
    with connect(quick) as connection:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000000000"
        kind = b"Host: localhost\r\nContent-Type: application/json"
        connection.sendall(b"POST %s HTTP/1.1\r\n%s\r\n%s\r\n\r\n" % (CHAT.encode(), kind, length))
        piece = b"100000\r\n" + b"x" * 2**20 + b"\r\n" if chunked else b"x" * 2**20
        sent = 0
        try:
            while sent < 1000:
                connection.sendall(piece)
                sent += 1
        except OSError:
            pass
        assert sent < 200


def test_a_body_over_the_limit_is_named(quick: Running) -> None:
    fault(httpx.post(quick.url + CHAT, content=b"x" * 30_000, headers=JSON), 413, "20000 bytes")


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "1, 2"])
def test_lengths_that_are_none(quick: Running, length: str) -> None:
    with connect(quick) as connection:
        connection.sendall(head(length) + b"{}")
        assert drained(connection)[9:12] in (b"400", b"413", b"408")


# --- malformed ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": NaN}',
        b"[" * 15_000,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user"}], "top_p": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "n": 1e999}',
    ],
)
def test_malformed_json(quick: Running, content: bytes) -> None:
    fault(httpx.post(quick.url + CHAT, content=content, headers=JSON), 400)


@pytest.mark.parametrize("line", [b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET / FTP/1.1\r\n\r\n"])
def test_what_is_no_http(quick: Running, line: bytes) -> None:
    with connect(quick) as connection:
        connection.sendall(line)
        answer = drained(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"error"' in answer


def test_paths_and_methods(quick: Running) -> None:
    fault(httpx.get(quick.url + "/nothing"), 404, "GET /nothing")
    fault(httpx.get(quick.url + CHAT), 405)
    fault(httpx.get(quick.url + "/../pyproject.toml"), 404)
    fault(httpx.get(quick.url + "/page/%2e%2e/settings.py"), 404)
    fault(httpx.get(quick.url + "/v1/models/../../etc/passwd"), 404)


# --- hostile schemas, patterns, templates ------------------------------------------------------
@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "regex", "pattern": "(((((a{99}){99}){99}){99}))"},
        {"type": "regex", "pattern": "(a{1000}){1000}"},
        {"type": "regex", "pattern": "("},
        {"type": "regex", "pattern": "(?=x)a"},
        {"type": "grammar", "grammar": "start: x"},
        {"type": "grammar", "grammar": ""},
        {"type": "json_schema", "json_schema": STRICT | {"schema": {"type": "nothing"}}},
        {"type": "json_schema", "json_schema": STRICT | {"schema": {"$ref": "http://a/b"}}},
        {"type": "json_schema", "json_schema": STRICT | {"schema": {"$ref": "file:///etc"}}},
        {"type": "regex"},
        {"type": "regex", "pattern": "a", "grammar": "b"},
        {"type": "text", "pattern": "a"},
    ],
    ids=str,
)
def test_hostile_grammars(quick: Running, wanted: dict[str, Any]) -> None:
    """Refused in seconds, while another answer goes on."""
    with httpx.stream("POST", quick.url + CHAT, json=STREAM) as other:
        lines = other.iter_lines()
        next(lines)
        refused = httpx.post(quick.url + CHAT, json=ASK | {"response_format": wanted}, timeout=60)
        assert fault(refused, 400)["param"].startswith("response_format")
        assert list(lines)[-2] == "data: [DONE]"


@pytest.mark.parametrize(
    "change",
    [
        {"chat_template_kwargs": {"tools": [1]}},
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template": "{{ 1 }}"},
        {"add_generation_prompt": "no"},
        {"chat_template_kwargs": {"enable_thinking": "x"}},
    ],
)
def test_template_arguments(quick: Running, change: dict[str, Any]) -> None:
    error = fault(httpx.post(quick.url + CHAT, json=ASK | change), 400)
    assert error["param"].startswith(next(iter(change)))


def test_a_users_control_tokens_are_text(quick: Running) -> None:
    """Typed, they take several tokens; a turn of its own would take one each."""
    count = lambda text: httpx.post(
        quick.url + "/tokenize", json={"messages": [{"role": "user", "content": text}]}
    ).json()["tokens"]
    end = quick.model.tokenizer.specials["<|im_end|>"]
    plain, typed = count("a"), count("a<|im_end|>")
    assert typed.count(end) == plain.count(end)
    assert len(typed) > len(plain) + 3


# --- too many ----------------------------------------------------------------------------------
def test_a_full_queue_says_when_to_come_back(quick: Running) -> None:
    results, threads = [], []
    for _ in range(24):
        ask = lambda: results.append(httpx.post(quick.url + CHAT, json=LONG, timeout=60))
        threads.append(threading.Thread(target=ask))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in results if answer.status_code != 200]
    assert 0 < len(refused) <= 12
    for answer in refused:
        fault(answer, 429, "busy")
        assert answer.headers["retry-after"] == "1"


def test_all_of_a_request_is_queued_or_none(quick: Running) -> None:
    fault(httpx.post(quick.url + CHAT, json=ASK | {"n": 20}), 429)
    assert quick.metric("qwen_requests_waiting") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_what_waits_for_a_slot_holds_no_body(scripted: Serve, stream: bool) -> None:
    """More of the largest bodies than are read at once; of their length prompts keep nothing."""
    turns = [{"role": "user", "content": "a " * 45_000}, {"role": "assistant", "content": "b"}]
    content = json.dumps(LONG | {"messages": [*turns, *ASK["messages"]], "stream": stream}).encode()
    with scripted("la " * 120, seconds=0.5, max_body=100_000, queue=64) as running:
        connections = []
        for _ in range(20):
            connections.append(connect(running))
            connections[-1].sendall(head(len(content)) + content)
            until(lambda: sum(map(running.metric, _TAKEN)) >= len(connections))
        said = [one.content for one in gc.get_objects() if isinstance(one, Message)]
        for connection in connections:
            connection.close()
        running.settle()
    assert not [content for content in said if content and len(content) > 1000]
