"""Who may ask; a device that fails; a server that ends."""

import concurrent.futures
import json
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from serve.http.keys import Keys
from tests.patience import until
from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import ASK, CHAT, STREAM, connect, drained, fault, head, request

WAITING = "qwen_requests_waiting"
KEYS = Keys({"a-secret-of-sixteen": "ann", "b-secret-of-sixteen": "bob"})
# --- keys --------------------------------------------------------------------------------------
PATHS = ["/v1/models", "/metrics", "/version", "/openapi.json", "/tokenizer_info", "/nothing"]


@pytest.fixture(scope="module")
def locked(scripted: Serve) -> Iterator[Running]:
    with scripted(keys=KEYS) as running:
        yield running


@pytest.mark.parametrize("path", [*PATHS, "//health", "/health/", "/health/../metrics"])
@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer x", "Basic a-secret-of-sixteen"])
def test_no_key_no_answer(locked: Running, path: str, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key}
    error = fault(httpx.get(locked.url + path, headers=headers), 401, "key")
    assert error["code"] == "invalid_api_key"


def test_keys_open_doors(locked: Running) -> None:
    for key in ("a-secret-of-sixteen", "b-secret-of-sixteen"):
        headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "mine-1"}
        answer = httpx.post(locked.url + CHAT, json=ASK, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "mine-1"
    for path in ("/health", "/ready", "/"):
        assert httpx.get(locked.url + path).status_code == 200
    fault(httpx.get(locked.url + "/metrics", headers={"Host": "x/health?"}), 401)


def test_a_body_without_a_key_is_not_read(locked: Running) -> None:
    with connect(locked) as connection:
        connection.sendall(head(10**9) + b"x" * 1000)
        assert drained(connection).startswith(b"HTTP/1.1 401")


def test_tenants_share_no_prefix(locked: Running) -> None:
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
def test_an_engine_that_fails_goes_on(scripted: Serve) -> None:
    with scripted("la " * 50, seconds=0.01) as running:
        device = running.script
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


def test_an_engine_that_cannot_go_on_says_so(scripted: Serve) -> None:
    with scripted() as running:
        running.script.failures = 10**9
        answers = [httpx.post(running.url + CHAT, json=ASK) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [500, 500, 500, 503]
        fault(httpx.get(running.url + "/health"), 503, "engine has failed")
        fault(httpx.get(running.url + "/ready"), 503)


def test_sigterm_lets_answers_end(scripted: Serve) -> None:
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


def test_two_hundred_under_way_come_to_their_end(scripted: Serve) -> None:
    """Those that write and those that wait for a slot; nobody new is taken."""
    ask = STREAM | {"max_tokens": 40}
    with (
        scripted("la " * 60, seconds=0.5, slots=32, step_tokens=1) as running,
        concurrent.futures.ThreadPoolExecutor(200) as pool,
    ):
        stream = lambda: httpx.post(running.url + CHAT, json=ask, timeout=60).text
        asked = [pool.submit(stream) for _ in range(200)]
        count = lambda: sum(map(running.metric, ("qwen_requests_running", WAITING)))
        while count() < 200:
            time.sleep(0.1)
        running.server.handle_exit(signal.SIGTERM, None)
        running.script.seconds = 0.0
        with pytest.raises(httpx.HTTPError):  # it listens no more
            httpx.post(running.url + CHAT, json=ASK).raise_for_status()
        texts = [one.result() for one in asked]
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert {text.count("data: ") for text in texts} == {texts[0].count("data: ")}
    assert '"finish_reason":"length"' in texts[0].replace(" ", "")


def test_draining_ends_in_time(scripted: Serve) -> None:
    how = {"seconds": 0.2, "drain_seconds": 1, "step_tokens": 1}
    with (
        scripted("la " * 60, **how) as running,
        httpx.stream("POST", running.url + CHAT, json=STREAM) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        running.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(httpx.HTTPError):
            list(lines)


def test_sigterm_under_attack(scripted: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Neither silence, half of a head or a body, nor an answer that nobody reads holds it up."""
    how = {"header_seconds": 900, "body_seconds": 900, "write_seconds": 900, "idle_seconds": 900}
    with scripted("la " * 60, seconds=0.2, drain_seconds=1, step_tokens=1, **how) as running:
        content = json.dumps(STREAM).encode()
        starts = [b"", b"GET /", head(1000), head(10**9), request("/health"), b"no http\r\n\r\n"]
        starts += [request("/health", b"", "Content-Length: 9"), request(CHAT, content)]
        held = [connect(running) for _ in range(5 * len(starts))]
        for number, connection in enumerate(held):
            connection.sendall(starts[number % len(starts)])
        time.sleep(0.5)
        running.server.handle_exit(signal.SIGTERM, None)
        until(lambda: not running.model.engine.alive)
        for connection in held:
            connection.close()
    assert not [record for record in caplog.records if record.exc_info]
