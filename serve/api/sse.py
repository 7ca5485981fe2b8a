"""Answers on their way out: whole, or event by event; a client that leaves frees its slots."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.choices import Choice
from serve.engine.ticket import Ticket
from serve.http.errors import ApiError
from serve.http.rendering import Run, encoded, pieces
from serve.lanes import SHORT
from serve.text.answer import Part, Token

Outcome = TypeVar("Outcome")


Working = AsyncIterator[tuple[int, Part]]  # which answer, and what it gained


@dataclass(frozen=True)
class Large:
    """An event of so many bytes, roughly, that is made and written off the event loop."""

    size: int
    make: Callable[[], dict[str, Any]]


class Reply(Protocol):
    """Answers in the form of an endpoint."""

    named: bool = False  # each event by the type of its object, on a line of its own
    end: str = "[DONE]"  # what a stream ends with

    async def whole(self, working: Working) -> Callable[[], dict[str, Any]]: ...
    def events(self, working: Working) -> AsyncIterator[dict[str, Any] | Large]: ...

    def fault(self, error: ApiError) -> dict[str, Any] | Large:
        """The last object of a stream that fails."""
        return error.body


class Gone(Exception):
    """The client closed the connection."""


async def parts(
    ticket: Ticket, choices: list[Choice], seconds: float
) -> AsyncIterator[tuple[int, Part]]:
    """(which choice, what it gained) until all are finished; at most for so many seconds."""
    deadline = asyncio.get_running_loop().time() + seconds
    updates = ticket.updates()
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                index, update = await anext(updates)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ApiError(504, f"the answer took longer than {seconds} s") from None
        choice = choices[index]
        if update.of_prompt:
            scored = zip(update.tokens, update.logprobs, update.best, strict=True)
            choice.scores += [Token(*score) for score in scored]
            continue
        part = choice.answer.push(update)
        if part.stopped:
            ticket.stop(index)
        if part.finish in ("error", "cancelled"):
            raise ApiError(500, "the engine failed while it answered; try again")
        choice.finish = part.finish
        yield index, part


async def until_gone(receive: Receive, work: Awaitable[Outcome]) -> Outcome:
    """The outcome of work, unless the client leaves: then it is cancelled and Gone is raised."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: one object each, then the end. Closes its ticket however it ends."""

    def __init__(self, ticket: Ticket, reply: Reply, working: Working, run: Run):
        """run: somewhere off the event loop."""
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._ticket, self._reply, self._working, self._run = ticket, reply, working, run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._write(send))
        except Gone:
            pass
        finally:
            self._ticket.close()

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        put = lambda content, more=True: send(
            {"type": "http.response.body", "body": content, "more_body": more}
        )
        try:
            async for event in self._reply.events(self._working):
                await self._event(event, put)
        except ApiError as error:
            await self._event(self._reply.fault(error), put)
        await put(f"data: {self._reply.end}\n\n".encode() if self._reply.end else b"", False)

    async def _event(self, event: dict[str, Any] | Large, put: Any) -> None:
        if isinstance(event, Large) and event.size > SHORT:
            await self._large(event, put)
            return
        made = event.make() if isinstance(event, Large) else event
        text = json.dumps(made, ensure_ascii=False) if made is event else "".join(pieces(made))
        await put(f"{self._name(made)}data: {text}\n\n".encode())

    async def _large(self, event: Large, put: Any) -> None:
        made: dict[str, Any] = {}

        def make() -> dict[str, Any]:
            made.update(event.make())
            return made

        before = "data: "
        async for part in encoded(self._run, make):
            await put((self._name(made) + before).encode() + part if before else part)
            before = ""
        await put(b"\n\n")

    def _name(self, event: dict[str, Any]) -> str:
        return f"event: {event['type']}\n" if self._reply.named else ""
