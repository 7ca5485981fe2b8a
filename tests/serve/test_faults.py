"""Whatever clients do, the server answers in OpenAI's form and goes on; its slots come back."""

import dataclasses
import json
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from serve.security import Keys
from tests.serve.conftest import SETTINGS

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "the dog"}]}
LONG = ASK | {"max_tokens": 200}
STREAM = LONG | {"stream": True}
CHAT = "/v1/chat/completions"
KEYS = Keys({"a-secret-of-sixteen": "ann", "b-secret-of-sixteen": "bob"})


@pytest.fixture(scope="module")
def quick(scripted):
    """Answers of 200 tokens, each of which takes a moment; little time and space for requests."""
    with scripted(
        "la " * 120, seconds=0.02, header_seconds=0.5, body_seconds=0.5, max_body=20_000, queue=8
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def survives(quick):
    """After every test the server still answers, and nothing is left in its slots."""
    yield
    quick.settle()
    answer = httpx.post(quick.url + CHAT, json=ASK | {"max_tokens": 3})
    assert answer.status_code == 200, answer.text
    assert quick.metric("qwen_engine_failures_total") == 0


def fault(answer, status, match=""):
    """The error of an answer, which has OpenAI's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert match in error["message"], error
    return error


def connect(running):
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def head(length, path=CHAT):
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def drained(connection):
    """Everything until the server closes."""
    content = b""
    try:
        while piece := connection.recv(65536):
            content += piece
    except ConnectionResetError:
        pass
    return content


# --- clients that leave ------------------------------------------------------------------------
def test_leaving_a_stream_frees_the_slot(quick):
    with httpx.stream("POST", quick.url + CHAT, json=STREAM) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert quick.metric("qwen_requests_running") == 1
    quick.settle()
    assert quick.metric('qwen_requests_finished_total{reason="cancelled"}') >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_queue(quick, stream):
    """All slots are taken, four more wait; then all leave."""
    content = json.dumps(LONG | {"stream": stream}).encode()
    connections = [connect(quick) for _ in range(8)]
    for connection in connections:
        connection.sendall(head(len(content)) + content)
    deadline = time.monotonic() + 10
    while quick.metric("qwen_requests_waiting") != 4:
        assert time.monotonic() < deadline
    for connection in connections:
        connection.close()
    quick.settle()


def test_leaving_in_the_middle_of_a_body(quick):
    connection = connect(quick)
    connection.sendall(head(1000) + b'{"model"')
    connection.close()


# --- too slow, too large -----------------------------------------------------------------------
@pytest.mark.parametrize("kept", [False, True])
def test_a_slow_head_is_cut_off(quick, kept):
    """On a fresh connection, and on one that was used before."""
    with connect(quick) as connection:
        if kept:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in connection.recv(65536)
        began = time.monotonic()
        connection.settimeout(0.05)
        while time.monotonic() - began < 4:
            try:
                connection.sendall(b"G")
                if connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert 0.3 < time.monotonic() - began < 4


def test_silence_is_cut_off(quick):
    with connect(quick) as connection:
        assert drained(connection) == b""


def test_a_slow_body_is_cut_off(quick):
    with connect(quick) as connection:
        connection.sendall(head(1000) + b"{")
        answer = drained(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"the body took longer than 0.5 s"' in answer


def test_a_huge_head(quick):
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
def test_a_huge_body(quick, chunked):
    """Of 1 GB, announced or not."""
    with connect(quick) as connection:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000000000"
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (CHAT.encode(), length))
        piece = b"100000\r\n" + b"x" * 2**20 + b"\r\n" if chunked else b"x" * 2**20
        sent = 0
        try:
            while sent < 1000:
                connection.sendall(piece)
                sent += 1
        except OSError:
            pass
        assert sent < 200


def test_a_body_over_the_limit_is_named(quick):
    fault(httpx.post(quick.url + CHAT, content=b"x" * 30_000), 413, "20000 bytes")


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "1, 2"])
def test_lengths_that_are_none(quick, length):
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
def test_malformed_json(quick, content):
    fault(httpx.post(quick.url + CHAT, content=content), 400)


@pytest.mark.parametrize("line", [b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET / FTP/1.1\r\n\r\n"])
def test_what_is_no_http(quick, line):
    with connect(quick) as connection:
        connection.sendall(line)
        answer = drained(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"error"' in answer


def test_paths_and_methods(quick):
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
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://a/b"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "file:///etc"}}},
        {"type": "regex"},
        {"type": "regex", "pattern": "a", "grammar": "b"},
        {"type": "text", "pattern": "a"},
    ],
    ids=str,
)
def test_hostile_grammars(quick, wanted):
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
        {"add_generation_prompt": False},
        {"chat_template_kwargs": {"enable_thinking": "x"}},
    ],
)
def test_template_arguments(quick, change):
    error = fault(httpx.post(quick.url + CHAT, json=ASK | change), 400)
    assert error["param"].startswith(next(iter(change)))


def test_a_users_control_tokens_are_text(quick):
    """Typed, they take several tokens; a turn of its own would take one each."""
    count = lambda text: httpx.post(
        quick.url + "/tokenize", json={"messages": [{"role": "user", "content": text}]}
    ).json()["tokens"]
    end = quick.model.tokenizer.specials["<|im_end|>"]
    plain, typed = count("a"), count("a<|im_end|>")
    assert typed.count(end) == plain.count(end)
    assert len(typed) > len(plain) + 3


# --- too many ----------------------------------------------------------------------------------
def test_a_full_queue_says_when_to_come_back(quick):
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


def test_all_of_a_request_is_queued_or_none(quick):
    fault(httpx.post(quick.url + CHAT, json=ASK | {"n": 20}), 429)
    assert quick.metric("qwen_requests_waiting") == 0


# --- keys --------------------------------------------------------------------------------------
PATHS = ["/v1/models", "/metrics", "/version", "/openapi.json", "/tokenizer_info", "/nothing"]


@pytest.fixture(scope="module")
def locked(scripted):
    with scripted(keys=KEYS) as running:
        yield running


@pytest.mark.parametrize("path", [*PATHS, "//health", "/health/", "/health/../metrics"])
@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer x", "Basic a-secret-of-sixteen"])
def test_no_key_no_answer(locked, path, key):
    headers = {} if key is None else {"Authorization": key}
    error = fault(httpx.get(locked.url + path, headers=headers), 401, "key")
    assert error["code"] == "invalid_api_key"


def test_keys_open_doors(locked):
    for key in ("a-secret-of-sixteen", "b-secret-of-sixteen"):
        headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "mine-1"}
        answer = httpx.post(locked.url + CHAT, json=ASK, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "mine-1"
    for path in ("/health", "/ready", "/"):
        assert httpx.get(locked.url + path).status_code == 200
    fault(httpx.get(locked.url + "/metrics", headers={"Host": "x/health?"}), 401)


def test_a_body_without_a_key_is_not_read(locked):
    with connect(locked) as connection:
        connection.sendall(head(10**9) + b"x" * 1000)
        assert drained(connection).startswith(b"HTTP/1.1 401")


def test_tenants_share_no_prefix(locked):
    """The time an answer takes must not tell what somebody else has asked."""
    long = {"model": "tiny", "messages": [{"role": "user", "content": "the quick brown fox " * 9}]}
    cached = []
    for key in ("a-secret-of-sixteen", "b-secret-of-sixteen", "b-secret-of-sixteen"):
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(locked.url + CHAT, json=long, headers=headers).json()
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[:2] == [0, 0]
    assert cached[2] >= 32


# --- the engine fails, the server ends ---------------------------------------------------------
def test_an_engine_that_fails_goes_on(scripted):
    with scripted("la " * 50, seconds=0.01) as running:
        device = running.model.engine._device
        with httpx.stream("POST", running.url + CHAT, json=STREAM) as answer:
            lines = answer.iter_lines()
            next(lines)
            device.failures = 1
            rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["type"] == "server_error"
        assert rest[-1] == "data: [DONE]"
        assert httpx.post(running.url + CHAT, json=ASK).status_code == 200
        assert running.metric("qwen_engine_failures_total") == 1
        device.failures = 1
        fault(httpx.post(running.url + CHAT, json=ASK), 500, "engine failed")
        assert httpx.get(running.url + "/health").status_code == 200


def test_an_engine_that_cannot_go_on_says_so(scripted):
    with scripted() as running:
        running.model.engine._device.failures = 10**9
        answers = [httpx.post(running.url + CHAT, json=ASK) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [500, 500, 500, 503]
        fault(httpx.get(running.url + "/health"), 503, "engine has failed")
        fault(httpx.get(running.url + "/ready"), 503)


def test_sigterm_lets_answers_end(scripted):
    with scripted("la " * 60, seconds=0.02) as running:
        with httpx.stream("POST", running.url + CHAT, json=STREAM) as answer:
            lines = answer.iter_lines()
            next(lines)
            with httpx.Client(base_url=running.url) as kept:
                assert kept.get("/ready").status_code == 200
                running.server.handle_exit(signal.SIGTERM, None)
                assert running.service.draining
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url + "/health")


def test_draining_ends_in_time(scripted):
    with scripted("la " * 60, seconds=0.2, drain_seconds=1, step_tokens=1) as running:
        with httpx.stream("POST", running.url + CHAT, json=STREAM) as answer:
            lines = answer.iter_lines()
            next(lines)
            began = time.monotonic()
            running.server.handle_exit(signal.SIGTERM, None)
            with pytest.raises(httpx.HTTPError):
                list(lines)
        assert time.monotonic() - began < 6


def test_the_settings_are_checked():
    for change in ({"chunk": 33}, {"slots": 0}, {"port": 70000}, {"tls_key": Path("x")}):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(SETTINGS, **change)
