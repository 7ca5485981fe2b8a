"""Large answers as JSON, a piece at a time: no piece holds the interpreter or much memory."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_ITEMS, _CHARACTERS, _BYTES = 1024, 2**16, 2**18  # of a slice of a list, of a text, of a piece

Run = Callable[[Callable[[], bytes]], Awaitable[bytes]]  # somewhere off the event loop


class Text:
    """A string that is made while it is written."""

    def __init__(self, parts: Iterable[str]):
        self.parts = parts


class Written:
    """JSON that was made before, of something that is told more than once."""

    def __init__(self, value: Any):
        self.text = "".join(pieces(value))


def pieces(value: Any) -> Iterator[str]:
    """JSON of a value, whose iterators are lists. Concatenated: what json.dumps would give."""
    if isinstance(value, Mapping):
        for index, (name, item) in enumerate(value.items()):
            yield f"{', ' if index else '{'}{_plain(name)}: "
            yield from pieces(item)
        yield "}" if value else "{}"
    elif isinstance(value, Text | str):
        yield '"'
        for part in value.parts if isinstance(value, Text) else (value,):
            for start in range(0, len(part), _CHARACTERS):
                yield _plain(part[start : start + _CHARACTERS])[1:-1]
        yield '"'
    elif isinstance(value, Written):
        yield value.text
    elif isinstance(value, list | Iterator):
        yield from _items(iter(value))
    else:
        yield _plain(value)


def _items(items: Iterator[Any]) -> Iterator[str]:
    before = "["
    while part := list(islice(items, _ITEMS)):
        if all(map(_small, part)):
            yield before + _plain(part)[1:-1]
        else:
            for item in part:
                yield before
                yield from pieces(item)
                before = ", "
        before = ", "
    yield "[]" if before == "[" else "]"


def _small(item: Any) -> bool:
    return isinstance(item, int | float | None) or (isinstance(item, str) and len(item) < 256)


_plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class Rendered(Response):
    """The JSON of what `build` gives, made and rendered by `run` while it is sent."""

    media_type = "application/json"

    def __init__(self, run: Run, build: Callable[[], Any]):
        super().__init__()
        self._run, self._build = run, build

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = encoded(self._run, self._build)
        first = await anext(parts)
        if len(first) < _BYTES:
            self.headers["content-length"] = str(len(first))
        else:
            del self.headers["content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def encoded(run: Run, build: Callable[[], Any]) -> AsyncIterator[bytes]:
    """The JSON of what `build` gives, a piece after another; one alone if it is short."""
    rest: Iterator[str] = iter(())

    def first() -> bytes:
        nonlocal rest
        rest = pieces(build())
        return _next(rest)

    content = await run(first)
    while len(content) >= _BYTES:
        yield content
        content = await run(lambda: _next(rest))
    yield content


def _next(rest: Iterator[str]) -> bytes:
    """A piece of at least _BYTES, unless it is the last."""
    parts, size = [], 0
    for part in rest:
        parts.append(part.encode("utf-8", "surrogatepass"))
        size += len(parts[-1])
        if size >= _BYTES:
            break
    return b"".join(parts)
