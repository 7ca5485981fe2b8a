"""Every state of a connection has a bound, and a probe is answered through all of it."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import h11
import httpx
import pytest

from serve.http.request_reader import MAX_HEAD, RequestReader
from tests.patience import until
from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import (
    ASK,
    CHAT,
    JSON,
    LONG,
    STREAM,
    connect,
    drained,
    ended,
    head,
    request,
)

TEXT = json.dumps(ASK | {"max_tokens": 3}).encode()
SECONDS = {"header_seconds": 0.5, "body_seconds": 0.5, "write_seconds": 1.0, "idle_seconds": 1.0}


@pytest.fixture(scope="module")
def quick(scripted: Serve) -> Iterator[Running]:
    with scripted("la " * 120, seconds=0.02, max_body=200_000, **SECONDS) as running:
        yield running


@pytest.fixture(autouse=True)
def survives(quick: Running) -> Iterator[None]:
    yield
    quick.settle()
    assert httpx.get(quick.url + "/health").status_code == 200


def closed(connection: socket.socket) -> float:
    """How long the server takes to close."""
    began = time.monotonic()
    drained(connection)
    return time.monotonic() - began


def status(answer: bytes) -> int:
    """Of an answer in the API's form, which says that the connection ends."""
    start, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in start.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    return int(start.split()[1])


# --- answers that come before the body ---------------------------------------------------------
@pytest.mark.parametrize(
    "start",
    [
        request("/health", b"", "Content-Length: 1000000"),
        request("/health", b"", "Transfer-Encoding: chunked"),
        head(1000, "/nothing"),
        head(10**9),
        head(1000).replace(b"application/json", b"text/plain"),
    ],
    ids=["get", "chunked", "404", "413", "415"],
)
@pytest.mark.parametrize("trickle", [False, True])
def test_a_body_that_nobody_reads(quick: Running, start: Any, trickle: Any) -> None:
    """The answer comes at once, says that the connection ends, and it does."""
    with connect(quick) as connection:
        connection.sendall(start)
        answer = connection.recv(65536)
        assert b"connection: close" in answer.lower()
        assert b" 408 " not in answer.partition(b"\r\n")[0]  # it was not waited for
        more = b"1\r\nx\r\n" if b"chunked" in start else b"x"
        until(lambda: ended(connection, more if trickle else b""))


def test_an_answer_is_not_lost_behind_a_body(quick: Running) -> None:
    """A client that sends all of a body that is too large, and only then reads."""
    with connect(quick) as connection:
        connection.sendall(head(4_000_000) + b"x" * 4_000_000)
        assert status(drained(connection)) == 413


def test_kept_connections_end(quick: Running) -> None:
    with connect(quick) as connection:
        connection.sendall(request("/health"))
        assert b"200" in connection.recv(65536)
        assert closed(connection) > 0.5


# --- clients that do not read, or end their side ---------------------------------------------
def test_a_stream_that_nobody_reads(scripted: Serve) -> None:
    """Its slot is freed although the client stays; the server holds little for it meanwhile."""
    with scripted("la " * 3000, max_length=4096, **SECONDS) as running:
        how = {"max_tokens": 3900, "n": 4, "logprobs": True, "top_logprobs": 20}
        content = json.dumps(STREAM | how).encode()
        address = urlsplit(running.url)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((address.hostname, address.port))
        with connection:
            connection.sendall(request(CHAT, content))
            running.settle()
            # the system reset it: nobody waits for the client to take what was left
            until(lambda: not running.server.server_state.connections)


def test_half_an_end_is_answered(quick: Running) -> None:
    """The client ends its side after the request, and reads."""
    content = json.dumps(LONG | {"max_tokens": 130}).encode()
    for body in (TEXT, content):
        with connect(quick) as connection:
            connection.sendall(request(CHAT, body))
            connection.shutdown(socket.SHUT_WR)
            answer = drained(connection)
        final = answer[answer.rindex(b"HTTP/1.1 ") :]
        assert final.startswith(b"HTTP/1.1 200")
        assert json.loads(final.partition(b"\r\n\r\n")[2])["choices"]


def test_pipelined_requests_are_answered_in_turn_after_half_an_end(quick: Running) -> None:
    with connect(quick) as connection:
        connection.sendall(request("/health") * 20 + request("/nothing"))
        connection.shutdown(socket.SHUT_WR)
        answer = drained(connection)
    assert answer.count(b"HTTP/1.1 200") == 20
    assert answer.count(b"HTTP/1.1 404") == 1


def test_a_client_that_waits_to_be_told(quick: Running) -> None:
    with connect(quick) as connection:
        connection.sendall(request(CHAT, TEXT, "Expect: 100-continue")[: -len(TEXT)])
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(TEXT)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    with connect(quick) as connection:
        large = head(10**9).replace(b"Host", b"Expect: 100-continue\r\nHost")
        connection.sendall(large)
        assert status(drained(connection)) == 413  # and no 100 before it


# --- what is ambiguous or too much -------------------------------------------------------------
LENGTH, CHUNKS = "Content-Length: 2", "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (request("/health", b"", LENGTH, CHUNKS) + b"{}", 400),
        (request("/health", b"", LENGTH, "Content-Length: 3") + b"{}", 400),
        (request("/health", b"", "Content-Length: +2") + b"{}", 400),
        (request("/health", b"", "Transfer-Encoding: gzip"), 501),
        (request("/health", b"", CHUNKS, CHUNKS), 501),
        (request("/health", b"", CHUNKS) + b"zz\r\n", 400),
        (b"POST /health HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (request("/health", b"", "Host: b"), 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n folded: x\r\nHost: a\r\n\r\n", 400),
        (b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n", 400),
        (request("/health", b"", f"X: {'x' * 33_500}"), 431),
        (request("/health", b"", f"X:{' ' * 33_500}x"), 431),
        (request("/" + "x" * 33_500), 431),
        (request("/health", b"", *["X: y"] * 101), 431),
        (request("/health", b"", *["X: y"] * 5000), 431),
        (request("/health", b"", *["X: y"] * 40_000), 431),
        (
            head("1").replace(b"Content-Length: 1", b"Transfer-Encoding: chunked")
            + b"1\r\nx\r\n0\r\n"
            + b"X: y\r\n" * 40_000
            + b"\r\n",
            431,
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_heads_that_are_refused(quick: Running, content: Any, wanted: Any) -> None:
    """As RFC 9112 says, and the connection is of no more use."""
    with connect(quick) as connection:
        connection.sendall(content)
        assert status(drained(connection)) == wanted


def test_what_is_too_large_is_not_taken_apart() -> None:
    """40,000 headers that come in one piece take a third of a second."""
    reader = RequestReader(h11.SERVER, MAX_HEAD)
    reader.receive_data(request("/health", b"", *["X: y"] * 40_000))
    began = time.thread_time()
    with pytest.raises(h11.RemoteProtocolError, match="too large"):
        reader.next_event()
    assert time.thread_time() - began < 0.05


def test_heads_within_the_limits(quick: Running) -> None:
    with connect(quick) as connection:
        connection.sendall(request("/health", b"", f"X: {'x' * 32_000}", *["Y: z"] * 90))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_tiny_chunks(quick: Running) -> None:
    """They would keep the event loop busy for many times the time they take to send."""
    with connect(quick) as connection:
        connection.sendall(
            request(CHAT, b"", CHUNKS)
            .replace(b"GET", b"POST", 1)
            .replace(b"Host", b"Content-Type: application/json\r\nHost")
        )
        connection.sendall(b"1\r\nx\r\n" * 10_000)
        assert status(drained(connection)) == 400


def test_a_refusal_in_the_middle_of_a_body(quick: Running) -> None:
    with connect(quick) as connection:
        start = head(0).replace(b"Content-Length: 0", CHUNKS.encode())
        connection.sendall(start + b"2\r\n{}\r\n")
        time.sleep(0.1)
        connection.sendall(b"no chunk\r\n")
        assert status(drained(connection)) == 400


def test_large_bodies_at_once(scripted: Serve) -> None:
    """Past so many bytes only small bodies are read on."""
    with scripted(max_body=100_000, body_seconds=5) as running:
        connections = [connect(running) for _ in range(20)]
        for connection in connections:
            connection.sendall(head(100_000) + b"x" * 99_000)
        assert status(drained(connections[-1])) == 503
        assert httpx.post(running.url + CHAT, json=ASK).status_code == 200
        for connection in connections:
            connection.close()
        ask = json.dumps(ASK) + " " * 90_000
        post = lambda: httpx.post(running.url + CHAT, content=ask, headers=JSON)
        until(lambda: post().status_code == 200)
