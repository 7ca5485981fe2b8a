"""What clients may do to a server on this machine, and on no other, for a bounded time."""

import asyncio
import contextlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
EMBEDDINGS, RERANK, GENERATE = "/v1/embeddings", "/v1/rerank", "/generate"
MAX_BODY = 4 * 2**20
LARGE = MAX_BODY - 1024


class Attack:
    """Connections to one server; everything it does is counted by status, or what went wrong."""

    def __init__(self, host: str, port: int):
        assert host == "127.0.0.1"
        self._address = host, port
        self.outcomes: Counter[str] = Counter()

    async def send(
        self, content: bytes, pieces: int = 1, pause: float = 0.0, hold: float = 0.0
    ) -> None:
        """Send it in so many pieces, read nothing for `hold` seconds, then read all."""
        size = -(-len(content) // pieces)
        try:
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection(*self._address)
                try:
                    for start in range(0, len(content), size):
                        writer.write(content[start : start + size])
                        await writer.drain()
                        await asyncio.sleep(pause)
                    await asyncio.sleep(hold)
                    answer = await reader.read(65536)
                    while await reader.read(65536):
                        pass
                finally:
                    writer.transport.abort()
        except TimeoutError:
            self.outcomes["still open after 60 s"] += 1
        except OSError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes[answer[9:12].decode("latin1") or "closed"] += 1

    async def post(self, path: str, body: Any, *lines: str, **how: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.send(head("POST", path, len(content), *lines) + content, **how)


def head(method: str, path: str, length: int | None = None, *lines: str) -> bytes:
    usual = ["Host: 127.0.0.1", "Connection: close", "Content-Type: application/json"]
    announced = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *usual, *announced, *lines, "", ""]).encode()


def _text(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "prompt": text, "max_tokens": 1, **fields}


def _chat(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "demo", "messages": messages, "max_tokens": 1, **fields}


def _marks(letters: int) -> str:
    return "a" + "\u0301\u0316" * letters


def _body(start: str, piece: str, end: str, size: int = LARGE) -> bytes:
    """A piece as often as it fits."""
    return (start + piece * ((size - len(start) - len(end)) // len(piece)) + end).encode()


# no prompt shows them, and every event about a whole response repeats them
TOOLS = [{"type": "function", "name": "f", "parameters": {str(n): [n] for n in range(50_000)}}]
BODIES: list[tuple[str, bytes]] = [
    ("/tokenize", json.dumps({"prompt": _marks(80_000)}).encode()),
    ("/tokenize", json.dumps({"prompt": _marks(300_000)}).encode()),
    (TEXT, json.dumps(_text(_marks(80_000))).encode()),
    (CHAT, json.dumps(_chat(_marks(300_000))).encode()),
    (TEXT, _body('{"prompt": [', "{},", "{}]}")),
    (CHAT, _body('{"messages": [', "{},", "{}]}")),
    ("/detokenize", _body('{"tokens": [', "-1,", "-1]}")),
    ("/detokenize", _body('{"tokens": [', "7,", "7]}")),
    (TEXT, json.dumps({f"unknown{n}": n for n in range(150_000)}).encode()),
    (TEXT, json.dumps({"x" * LARGE: 1}).encode()),
    (TEXT, json.dumps(_text("a", logit_bias={"1" * 5000: 1})).encode()),
    (TEXT, json.dumps(_text("a", logit_bias={str(n): 1 for n in range(200_000)})).encode()),
    ("/tokenize", json.dumps({"prompt": "a" * LARGE, "return_token_strs": True}).encode()),
    ("/tokenize", json.dumps({"prompt": "word " * (LARGE // 5 - 9)}).encode()),
    (TEXT, json.dumps(_text("a " * (LARGE // 2 - 99))).encode()),
    (CHAT, json.dumps(_chat("你" * (LARGE // 6 - 99))).encode()),
    (CHAT, b"[" * LARGE),
    (RESPONSES, _body('{"input": [', "{},", "{}]}")),
    (RESPONSES, json.dumps({"input": "a " * (LARGE // 2 - 99)}).encode()),
    (RESPONSES, json.dumps({"input": "a", "metadata": {"x": "y" * (LARGE - 99)}}).encode()),
    (MESSAGES, _body('{"max_tokens": 1, "messages": [', "{},", "{}]}")),
    (MESSAGES, json.dumps(_chat(_marks(300_000))).encode()),
    (RESPONSES, json.dumps({"input": "a", "tools": TOOLS, "tool_choice": "none"}).encode()),
    (TEXT, _body('{"stop": [', '"a",', '"a"]}')),
    (EMBEDDINGS, _body('{"input": [', '"a",', '"a"]}')),
    (EMBEDDINGS, _body('{"input": [', "[-1],", "[-1]]}")),
    (EMBEDDINGS, json.dumps({"input": [_marks(150)] * 2000}).encode()),
    (RERANK, _body('{"query": "a", "documents": [', "{},", "{}]}")),
    (RERANK, json.dumps({"query": _marks(300_000), "documents": ["a"] * 2000}).encode()),
    ("/rerank", json.dumps({"query": "a" * 1_000_000, "texts": ["a" * 1400] * 2000}).encode()),
    (GENERATE, json.dumps({"inputs": _marks(300_000)}).encode()),
    (GENERATE, json.dumps({"inputs": "a " * 1_000_000, "parameters": {"truncate": 1}}).encode()),
]
PATTERNS = ("(((((a{99}){99}){99}){99}){99})", "(a{1000}){1000}", "(a?){500}a{500}", "(.*a){30}")
SCHEMA = {"type": "object", "properties": {f"p{n}": {"enum": [str(n)] * 50} for n in range(300)}}


async def bodies(attack: Attack) -> None:
    path, content = random.choice(BODIES)
    await attack.post(path, content)


async def grammars(attack: Attack) -> None:
    """In the words of one dialect or another."""
    pattern, named = random.choice(PATTERNS), {"name": "x", "schema": SCHEMA}
    regex, schema = {"type": "regex", "pattern": pattern}, {"type": "json_schema"}
    hostile = {"type": "regex", "value": pattern}
    asked = [
        (CHAT, _chat("a", response_format=regex)),
        (CHAT, _chat("a", response_format=schema | {"json_schema": named})),
        (GENERATE, {"inputs": "a", "parameters": {"grammar": hostile, "max_new_tokens": 1}}),
        (RESPONSES, {"input": "a", "text": {"format": schema | named}, "max_output_tokens": 1}),
    ]
    path, body = random.choices(asked, (5, 2, 2, 1))[0]
    await attack.post(path, body)


async def unread_streams(attack: Attack) -> None:
    how = {"stream": True, "max_tokens": 900, "ignore_eos": True}
    scores = {"logprobs": True, "top_logprobs": 20, "n": 2}
    asked = [(CHAT, _chat("a", **how, **scores)), (MESSAGES, _chat("a", **how))]
    path, body = random.choice(asked)
    await attack.post(path, body, hold=20)


async def kept_responses(attack: Attack) -> None:
    """Answers that the server keeps, each with a conversation as long as it takes."""
    await attack.post(RESPONSES, {"input": "word " * 200, "max_output_tokens": 1, "store": True})


async def slow_heads(attack: Attack) -> None:
    await attack.send(head("GET", "/health"), pieces=40, pause=1.0)


async def slow_bodies(attack: Attack) -> None:
    await attack.post(CHAT, b" " * 100_000, pieces=60, pause=1.0)


async def bodies_never_read(attack: Attack) -> None:
    path = random.choice(["/health", "/", "/v1/models", "/nothing"])
    await attack.send(head("GET", path, 1_000_000), hold=30)


async def silence(attack: Attack) -> None:
    await attack.send(b"G", hold=30)


async def flood(attack: Attack) -> None:
    """Many connections of short life."""
    for _ in range(20):
        await attack.send(head("GET", "/version", None))


async def pages(attack: Attack) -> None:
    """What a web page from elsewhere would have a browser send."""
    await attack.post(CHAT, _chat("a"), "Origin: https://evil.example")
    content = json.dumps(_chat("a")).encode()
    plain = head("POST", CHAT, len(content)).replace(b"application/json", b"text/plain")
    await attack.send(plain + content)
    evil = head("POST", CHAT, len(content)).replace(b"Host: 127.0.0.1", b"Host: evil.example")
    await attack.send(evil + content)


async def broken_http(attack: Attack) -> None:
    both = head("POST", CHAT, 2, "Transfer-Encoding: chunked")
    chunks = head("POST", CHAT, None, "Transfer-Encoding: chunked")
    headers = head("GET", "/health", None, *["X: y"] * 5000)
    await attack.send(
        random.choice([both, headers, b"\0" * 65536, chunks + b"1\r\nx\r\n" * 50_000])
    )


# Each with how many do it at a time and the seconds between two of them.
KINDS: list[tuple[Callable[[Attack], Awaitable[None]], int, float]] = [
    (bodies, 6, 0.1),
    (grammars, 4, 0.5),
    (unread_streams, 2, 5.0),
    (kept_responses, 2, 0.5),
    (slow_heads, 100, 0.1),
    (slow_bodies, 100, 0.1),
    (bodies_never_read, 400, 0.1),
    (silence, 400, 0.1),
    (flood, 4, 0.2),
    (pages, 2, 0.2),
    (broken_http, 4, 0.2),
]


async def everything(
    host: str, port: int, seconds: float, but: Collection[str] = ()
) -> dict[str, dict[str, int]]:
    """All kinds at once, but for some; how each ended."""
    attacks = {kind.__name__: Attack(host, port) for kind, _, _ in KINDS}

    async def repeat(kind: Callable[[Attack], Awaitable[None]], pause: float) -> None:
        for _ in itertools.count():
            await kind(attacks[kind.__name__])
            await asyncio.sleep(pause * (0.5 + random.random()))

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for kind, many, pause in KINDS:
                if kind.__name__ in but:
                    continue
                for _ in range(many):
                    group.create_task(repeat(kind, pause))
    return {name: dict(attack.outcomes.most_common()) for name, attack in attacks.items()}


if __name__ == "__main__":
    import sys

    port, seconds, *but = sys.argv[1:]
    print(json.dumps(asyncio.run(everything("127.0.0.1", int(port), float(seconds), but))))
