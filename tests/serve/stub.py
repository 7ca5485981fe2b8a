"""A server that says what a test wants: the OpenAI API's shape with no model behind it."""

import itertools
import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serve.http.pages import FILES, POLICY


class Refusal(Exception):
    """An answer that is an error: before the first piece by its status, later in the stream."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class BreaksOff(Exception):
    """An answer whose connection is lost."""


Piece = str | dict[str, str]  # of the content, or a delta
Answer = Callable[[dict[str, Any]], Iterable[Piece]]


class Stub:
    """A running server; `answer` makes the pieces of text for a request's body."""

    def __init__(self, answer: Answer = lambda body: ["Hi."]) -> None:
        self.answer, self.key, self.finish = answer, "", "stop"
        self.models = ["qwen-tiny", "qwen-tiny-adapter"]
        self.turn: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # of code that runs
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.left = threading.Event()  # a client went away before the end
        handler = type("Handler", (_Handler,), {"stub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Stub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"
    wbufsize = 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self._allowed():
                about: dict[str, Any] = {"max_model_len": 8192}
                about["sampling"] = {"temperature": 0.7, "top_k": 20}
                if self.stub.turn:
                    about["code_interpreter"] = {"ask": "Ask: ", "stop": "STOP", "runs": 2}
                models = [{"id": id, **about} for id in self.stub.models]
                self._json(200, {"object": "list", "data": models})
            return
        file = FILES.get(self.path)
        if file is None:
            self._error(404, "not found")
            return
        kind, content = file
        self._send(200, content, {"Content-Type": kind, "Content-Security-Policy": POLICY})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        if self.path == "/tokenize":
            self._json(200, {"count": len(body["prompt"].split())})
            return
        if self.path == "/v1/code_interpreter" and self.stub.turn:
            self._json(200, self.stub.turn(body))
            return
        self.stub.requests.append(body)
        self.stub.headers.append(dict(self.headers))
        try:
            pieces = iter(self.stub.answer(body))
            first = next(pieces, None)
        except Refusal as refusal:
            self._error(refusal.status, refusal.message)
            return
        except BreaksOff:
            self.close_connection = True
            return
        try:
            self._stream(body, ([] if first is None else [first]), pieces)
        except (ConnectionError, TimeoutError):
            self.stub.left.set()
        except BreaksOff:
            pass
        self.close_connection = True

    def _stream(self, body: dict[str, Any], first: list[Piece], rest: Iterable[Piece]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        chat, count = self.path == "/v1/chat/completions", 0
        if chat:
            self._event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        try:
            for piece in itertools.chain(first, rest):
                count += 1
                delta = piece if isinstance(piece, dict) else {"content": piece}
                said: dict[str, Any] = {"delta": delta} if chat else {"text": piece}
                self._event({"choices": [{"index": 0, "finish_reason": None, **said}]})
        except Refusal as refusal:
            self._event({"error": {"message": refusal.message, "code": refusal.status}})
            return
        said = {"delta": {}} if chat else {"text": ""}
        self._event({"choices": [{"index": 0, "finish_reason": self.stub.finish, **said}]})
        if body.get("stream_options", {}).get("include_usage"):
            prompt = body.get("prompt") or body["messages"][-1]["content"]
            length = len(prompt if isinstance(prompt, list) else prompt.split())
            usage = {"prompt_tokens": length, "completion_tokens": count}
            self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def _allowed(self) -> bool:
        key = self.stub.key
        good = not key or self.headers["Authorization"] == f"Bearer {key}"
        if not good:
            self._error(401, "the API key is wrong")
        return good

    def _error(self, status: int, message: str) -> None:
        self._json(status, {"error": {"message": message, "code": status}})

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
