"""There are never more connections than there is room for, and somebody always gets in."""

import asyncio
import json
import resource
import socket
import ssl
from pathlib import Path

import httpx
import pytest

from serve.http.listener import Listener, limit
from tests.patience import until
from tests.serve.conftest import Serve
from tests.serve.raw_http import ASK, CHAT, STREAM, connect, drained, fault, head, request


def test_who_waits_longest_makes_room(scripted: Serve) -> None:
    """Of 200 connections that say nothing, or half of a request, 20 stay; everyone is answered."""
    with scripted(max_connections=20, header_seconds=60, body_seconds=60) as running:
        held = []
        for number in range(200):
            held.append(connect(running))
            held[-1].sendall(head(100) if number % 2 else b"GET /hea")
            if number % 50 == 0:
                assert httpx.get(running.url + "/health").status_code == 200
                assert httpx.post(running.url + CHAT, json=ASK).status_code == 200
        assert drained(held[0]) == b""
        until(lambda: len(running.server.server_state.connections) <= 20)
        for connection in held:
            connection.close()


def test_past_the_limit_only_probes_are_answered(scripted: Serve) -> None:
    """Where every connection has an answer under way."""
    with scripted("la " * 120, seconds=0.2, max_connections=3) as running:
        held = [connect(running) for _ in range(3)]
        for connection in held:
            connection.sendall(request(CHAT, json.dumps(STREAM).encode()))
            connection.recv(100)
        for path in ("/health", "/ready"):
            assert httpx.get(running.url + path).status_code == 200
        fault(httpx.post(running.url + CHAT, json=ASK), 503, "too many connections")
        for connection in held:
            connection.close()
        until(lambda: httpx.get(running.url + "/v1/models").status_code == 200)


def test_a_connection_that_comes_as_the_server_ends_is_closed() -> None:
    async def end() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listener = Listener(listening, lambda seat: asyncio.Protocol(), 3, None, 1)
            ours, theirs = socket.socketpair()
            with theirs:
                listener._begin(ours)
                listener.close()
                await listener.wait_closed()
        return ours.fileno()

    assert asyncio.run(end()) == -1


def test_tls_that_shakes_no_hands(scripted: Serve, certificate: tuple[Path, Path]) -> None:
    key, public = certificate
    how = {"tls_certificate": public, "tls_key": key, "header_seconds": 0.5}
    with scripted(**how) as running:
        with connect(running) as connection:
            connection.sendall(b"\x16\x03\x01")
            drained(connection)
        trusted = ssl.create_default_context(cafile=str(public))
        url = running.url.replace("http:", "https:")
        with httpx.Client(verify=trusted) as client:
            assert client.get(url + "/health").status_code == 200


def test_the_limit_follows_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit is raised as far as it has to be, and no further than the hard one."""
    raised = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    assert limit(None, 272) == 1024
    assert raised == [(1024 + 64 + 192, 4096)]
    assert limit(None, 10_000) == 4096 - 64 - 192
    with pytest.raises(ValueError, match="max_connections is 10000"):
        limit(10_000, 272)
