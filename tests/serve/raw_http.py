"""What tests of faults say over a bare connection, and what an error looks like."""

import socket

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "the dog"}]}
LONG = ASK | {"max_tokens": 200}
STREAM = LONG | {"stream": True}
CHAT = "/v1/chat/completions"


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
