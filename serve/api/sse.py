"""Answers on their way out: whole, or event by event; a client that leaves frees its slots."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.choices import Choice
from serve.engine.ticket import Ticket
from serve.http.errors import ApiError
from serve.text.answer import Part, Token

Outcome = TypeVar("Outcome")


Working = AsyncIterator[tuple[int, Part]]  # which answer, and what it gained


class Reply(Protocol):
    """Answers in the form of an endpoint."""

    named: bool = False  # each event by the type of its object, on a line of its own
    end: str = "[DONE]"  # what a stream ends with

    async def whole(self, working: Working) -> Callable[[], dict[str, Any]]: ...
    def events(self, working: Working) -> AsyncIterator[dict[str, Any]]: ...

    def fault(self, error: ApiError) -> dict[str, Any]:
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

    def __init__(self, ticket: Ticket, reply: Reply, working: Working):
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._ticket, self._reply, self._working = ticket, reply, working

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
        put = lambda text, more: send(
            {"type": "http.response.body", "body": text.encode(), "more_body": more}
        )
        try:
            async for event in self._reply.events(self._working):
                await put(self._event(event), True)
        except ApiError as error:
            await put(self._event(self._reply.fault(error)), True)
        await put(f"data: {self._reply.end}\n\n" if self._reply.end else "", False)

    def _event(self, event: dict[str, Any]) -> str:
        name = f"event: {event['type']}\n" if self._reply.named else ""
        return f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n"
