"""A web page from elsewhere cannot use a server without keys; whoever asks for its own can."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve.http.keys import Keys
from serve.http.origins import Origins
from serve.settings import ServeConfig
from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import ASK, CHAT, JSON, connect, drained, fault, request


@pytest.fixture(scope="module")
def open_server(scripted: Serve) -> Iterator[Running]:
    with scripted() as running:
        yield running


def refused(
    host: str | None = None,
    origin: str | None = None,
    site: str | None = None,
    path: str = "/v1/models",
    reached: Any = "127.0.0.1",
    **settings: Any,
) -> Any:
    """The status with which a request is refused, 0 if it is not."""
    given = {"host": host, "origin": origin, "sec-fetch-site": site}
    headers = [
        (name.encode(), value.encode()) for name, value in given.items() if value is not None
    ]
    scope = {"headers": headers, "path": path, "server": (reached, 8000)}
    refusal = Origins(ServeConfig(**settings)).refusal(scope)
    return refusal.status if refusal else 0


@pytest.mark.parametrize(
    "host",
    [
        *(None, "localhost", "LocalHost:8000", "localhost.", "127.0.0.1:9", "127.9.9.9"),
        *("[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"),
    ],
)
def test_own_names(host: str) -> None:
    assert not refused(host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "8.8.8.8", "", "127.1"),
        *("localhost:x", "[::1", "[::2]:80", "2130706433", "localhost evil", "x@localhost"),
    ],
)
def test_names_of_others(host: str) -> None:
    assert refused(host) == 421
    assert not refused(host, path="/health")  # says nothing, and probes use many names


def test_names_that_are_set() -> None:
    """--host and --allowed-host; every address where all are listened to, since none is a name."""
    assert not refused("Box.lan:80", allowed_host=("box.lan",))
    assert not refused("anything", allowed_host=("*",))
    own = Origins(ServeConfig(host="192.168.1.5"))
    assert own.refusal({"headers": [(b"host", b"192.168.1.5:1")], "path": "/"}) is None
    wide = Origins(ServeConfig(host="0.0.0.0"))
    for host, status in ((b"10.1.2.3:8000", 0), (b"[fe80::1]", 0), (b"evil.example", 421)):
        found = wide.refusal({"headers": [(b"host", host)], "path": "/"})
        assert (found.status if found else 0) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 0),
        ("HTTP://localhost:8000".lower(), 0),
        ("http://localhost:3000", 403),
        ("http://127.0.0.1:8000", 403),  # another name is another origin
        ("https://evil.example", 403),
        ("http://localhost:8000.evil.example", 403),
        ("http://evil@localhost:8000", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
        ("https://friend.example", 0),
    ],
)
def test_pages(origin: str, status: int) -> None:
    cors = ("https://friend.example",)
    for path in ("/v1/models", "/", "/health"):
        assert refused("localhost:8000", origin, path=path, cors=cors) == status


def test_pages_by_what_browsers_say_of_them() -> None:
    """Without Origin, as images and links are asked for; a link to the page itself is fine."""
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 0), ("none", 0)):
        assert refused("localhost", site=site) == status
        assert not refused("localhost", site=site, path="/")


def test_over_the_network(open_server: Running) -> None:
    for headers in ({"Host": "evil.example"}, {"Host": "evil.example:8000"}):
        error = fault(httpx.post(open_server.url + CHAT, json=ASK, headers=headers), 421)
        assert "--allowed-host evil.example" in error["message"]
    foreign = {"Origin": "https://evil.example"}
    fault(httpx.get(open_server.url + "/v1/models", headers=foreign), 403, "--cors")
    fault(httpx.post(open_server.url + CHAT, json=ASK, headers=foreign), 403)
    own = {"Origin": open_server.url}
    assert httpx.post(open_server.url + CHAT, json=ASK, headers=own).status_code == 200


def test_with_keys_the_key_decides(scripted: Serve) -> None:
    with scripted(keys=Keys({"k" * 16: "ann"})) as running:
        headers = {"Host": "chat.example", "Authorization": f"Bearer {'k' * 16}"}
        answer = httpx.post(running.url + CHAT, json=ASK, headers=headers)
        assert answer.status_code == 200


@pytest.mark.parametrize("absolute", ["http://{}/version", "HTTP://{}/version?x=1"])
def test_targets_as_a_proxy_is_asked(open_server: Running, absolute: str) -> None:
    """The host is in the target, whatever the header says."""
    own = open_server.url.removeprefix("http://")
    for authority, said, status in ((own, "x", b"200"), ("evil.example", own, b"421")):
        with connect(open_server) as connection:
            target = absolute.format(authority)
            connection.sendall(request(target, b"", "Connection: close", host=said))
            assert drained(connection)[9:12] == status


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_is_read(open_server: Running, kind: str) -> None:
    content, headers = json.dumps(ASK), {"Content-Type": kind}
    answer = httpx.post(open_server.url + CHAT, content=content, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "text/plain; application/json"},
        JSON | {"Content-Encoding": "gzip"},
        JSON | {"Content-Encoding": "identity, br"},
    ],
    ids=str,
)
def test_other_bodies_are_refused(open_server: Running, headers: Any) -> None:
    """With what to send instead."""
    answer = httpx.post(open_server.url + CHAT, content=json.dumps(ASK), headers=headers)
    fault(answer, 415, "Content-Encoding" if "Content-Encoding" in headers else "application/json")
