"""What tests of faults say over a bare connection, and what an error looks like."""

import socket
from typing import Any

from tests.patience import PATIENCE
from tests.serve.conftest import Running

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "the dog"}]}
LONG = ASK | {"max_tokens": 200}
STREAM = LONG | {"stream": True}
CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def fault(answer: Any, status: int, match: str = "") -> dict[str, Any]:
    """The error of an answer, which has OpenAI's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert match in error["message"], error
    return error


def connect(running: Running) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def head(length: int | str, path: str = CHAT) -> bytes:
    lines = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}"
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n\r\n".encode()


def request(path: str = CHAT, body: bytes = b"", *lines: str, host: str = "localhost") -> bytes:
    """A whole request; lines: of its head, beside Host and what its body needs."""
    first = f"POST {path} HTTP/1.1" if body else f"GET {path} HTTP/1.1"
    if body:
        lines = ("Content-Type: application/json", f"Content-Length: {len(body)}", *lines)
    return "\r\n".join([first, f"Host: {host}", *lines, "", ""]).encode() + body


def drained(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    content = b""
    try:
        while piece := connection.recv(65536):
            content += piece
    except ConnectionResetError:
        pass
    return content


def ended(connection: socket.socket, more: bytes) -> bool:
    """Whether the server has ended a connection on which more is sent meanwhile."""
    connection.settimeout(0.05)
    try:
        connection.sendall(more)
        return connection.recv(100) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
