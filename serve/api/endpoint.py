"""What every endpoint does: read the body, find the model, queue, answer."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serve.api import formats
from serve.api.choices import Choice
from serve.api.sse import EventStream, Gone, Reply, parts, until_gone
from serve.engine.fair_queue import QueueFull
from serve.engine.request import Request as EngineRequest
from serve.engine.ticket import Ticket
from serve.http.body import parse
from serve.http.errors import ApiError, busy
from serve.http.rendering import Rendered, Run
from serve.lanes import SHORT, Lane
from serve.schemas.requests import Body, SamplingFields
from serve.service import Model, Service

Fields = TypeVar("Fields", bound=BaseModel)
Asked = TypeVar("Asked", bound=Body)
Outcome = TypeVar("Outcome")
_SMALL = 4096  # bytes of a body that the event loop reads itself, in less than a millisecond
_CLOSE = {"Connection": "close"}  # the rest of the body will not be read


async def body(request: Request) -> bytes:
    """The whole body, of limited size and in limited time."""
    settings = request.app.state.service.settings
    too_large = ApiError(413, f"the body is larger than {settings.max_body} bytes", headers=_CLOSE)
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > settings.max_body:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for piece in request.stream():
                content += piece
                if len(content) > settings.max_body:
                    raise too_large
    except TimeoutError:
        message = f"the body took longer than {settings.body_seconds} s"
        raise ApiError(408, message, headers=_CLOSE) from None
    except ClientDisconnect:
        raise Gone from None
    return bytes(content)


async def read(request: Request, kind: type[Fields]) -> Fields:
    """The fields of a request's body; a large one is read off the event loop."""
    content = await body(request)
    request.state.size = len(content)
    if len(content) <= _SMALL:
        return parse(kind, content)
    return await work(request, parse, kind, content)


async def work(request: Request, function: Callable[..., Outcome], *arguments: Any) -> Outcome:
    """What a function gives that takes long where the body is; off the event loop."""
    return await in_lane(request, lane_for(request, request.state.size), function, *arguments)


def lane_for(request: Request, size: int) -> Lane:
    service: Service = request.app.state.service
    return service.lanes.for_text(size)


async def in_lane(
    request: Request, lane: Lane, function: Callable[..., Outcome], *arguments: Any
) -> Outcome:
    """Raises a 429 where this client has too much work in a lane."""
    try:
        return await lane.run(request.state.tenant, function, *arguments)
    except QueueFull as error:
        raise busy(f"the server is busy: {error}", 429) from None


TASKS = {  # what a model is for, and where it is asked
    "generate": "answers, at /v1/chat/completions, and makes no vectors (see --task)",
    "embed": "makes vectors of texts, at /v1/embeddings, and does nothing else",
    "rerank": "ranks documents, at /v1/rerank, and does nothing else",
}


def model(service: Service, name: str | None, task: str | None = None) -> Model:
    """The model a client asks for, by its own name or an adapter's; None: the bare one.

    task: what it has to be for.
    """
    found = _model(service, name)
    if task not in (None, found.task):
        raise ApiError(400, f"model {found.name!r} {TASKS[found.task]}", "model")
    return found


def _model(service: Service, name: str | None) -> Model:
    if service.trouble or service.model is None:
        raise ApiError(503, service.trouble, headers={"Retry-After": "5"})
    if name is None or name == service.model.name:
        return service.model
    if name not in service.named:
        known = ", ".join(map(repr, [service.model.name, *service.named]))
        message = f"there is no model {name[:80]!r}, this server has {known}"
        raise ApiError(404, message, "model", "model_not_found")
    return service.named[name]


def ticket(model: Model, asked: list[EngineRequest]) -> Ticket:
    """Puts requests in line."""
    if model.adapter.gone:
        raise busy(f"adapter {model.name!r} was taken away or replaced; ask again", 503)
    try:
        return Ticket(model.engine, asked, model.adapter.followers)
    except QueueFull as error:
        raise ApiError(429, f"the server is busy: {error}", headers={"Retry-After": "1"}) from None
    except RuntimeError as error:
        raise ApiError(503, str(error), headers={"Retry-After": "5"}) from None


def rendered(request: Request, size: int, build: Callable[[], Any]) -> Response:
    """What build makes, of so many bytes, in pieces and off the event loop."""
    return Rendered(_run(request, size), build)


def _run(request: Request, size: int) -> Run:
    """Where so many bytes are rendered."""
    lane = lane_for(request, size)
    return lambda rendering: lane.run(request.state.tenant, rendering, bounded=False)


async def answered(
    request: Request,
    kind: type[Asked],
    prepared: Callable[[Model, str, Asked, int], list[Choice]],
    reply: Callable[[Model, Asked, list[Choice]], Reply],
    referred: Callable[[Asked], int] = lambda fields: 0,
) -> Response:
    """Answer a request of a kind, whole or as a stream of events.

    prepared: what the engine is asked for, of model, owner, fields and the most answers there may
    be; off the event loop, since texts may be long. referred: bytes that the server keeps and the
    request names, which are as much work as if they stood in its body.
    """
    service: Service = request.app.state.service
    fields = await read(request, kind)
    request.state.size += referred(fields)
    found = model(service, fields.wanted, "generate")

    async def preparing() -> list[Choice]:
        most, tenant = service.settings.max_choices, request.state.tenant
        try:
            choices = await work(request, prepared, found, tenant, fields, most)
            if choices[0].prompt.rules is not None:
                await in_lane(request, service.lanes.grammars, formats.constrain, found, choices)
        except ApiError as error:
            raise error.renamed(fields.names) from None
        return choices

    choices = await until_gone(request.receive, preparing())
    made = reply(found, fields, choices)
    fields = fields.without_texts()
    request.state.understood()  # nothing of the body is held while the answer waits for its slot
    line = ticket(found, [choice.request for choice in choices])
    request.state.choices = choices
    working = parts(line, choices, service.settings.request_seconds)
    if fields.stream:
        return EventStream(line, made, working, _run(request, SHORT + 1))
    try:
        build = await until_gone(request.receive, made.whole(working))
    finally:
        line.close()
    return rendered(request, sum(map(size_of, choices)), build)


def size_of(choice: Choice) -> int:
    """Bytes of an answer so far, roughly."""
    scored = 0 if choice.request.logprobs is None else 1 + choice.request.logprobs
    tokens = choice.answer.count + len(choice.prompt.ids) * choice.request.judged
    return len(choice.prompt.ids) + tokens * (8 + 80 * scored)


def usage(choices: list[Choice]) -> dict[str, object]:
    """Tokens read and written; a prompt that n answers share counts once."""
    prompts = {id(choice.prompt): choice for choice in reversed(choices)}.values()  # the first
    read = sum(len(choice.prompt.ids) for choice in prompts)
    written = sum(choice.answer.count for choice in choices)
    thought = sum(choice.answer.reasoning for choice in choices)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(c.request.shared for c in prompts)},
        "completion_tokens_details": {
            "reasoning_tokens": thought,
            "accepted_prediction_tokens": sum(c.request.accepted for c in choices),
            "rejected_prediction_tokens": sum(
                c.request.drafted - c.request.accepted for c in choices
            ),
        },
    }


def answer_ids(fields: SamplingFields, ids: list[int]) -> dict[str, list[int]]:
    """An answer's tokens, where they were asked for."""
    return {"token_ids": ids} if fields.return_token_ids and ids else {}


def prompt_ids(fields: SamplingFields, choice: Choice) -> dict[str, list[int]]:
    """A prompt's tokens, where they were asked for."""
    return {"prompt_token_ids": choice.prompt.ids} if fields.return_token_ids else {}


def usage_so_far(fields: SamplingFields, choices: list[Choice]) -> dict[str, object]:
    """What each event of a stream says of usage, where that was asked for."""
    options = fields.stream_options
    if options is None or not options.include_usage:
        return {}
    return {"usage": usage(choices) if options.continuous_usage_stats else None}


def last_event(
    fields: SamplingFields, head: dict[str, Any], choices: list[Choice]
) -> dict[str, Any] | None:
    """The usage at the end of a stream, where that was asked for."""
    options = fields.stream_options
    if options is None or not options.include_usage:
        return None
    return {**head, "choices": [], "usage": usage(choices)}
