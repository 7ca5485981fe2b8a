"""Texts that give a vector each and no answer: those to embed, and documents to rank."""

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HttpRequest

from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.embeddings import end_of, whole_ids
from serve.api import endpoint
from serve.api.sse import until_gone
from serve.api.window import check_texts, too_long
from serve.engine.request import Request
from serve.engine.ticket import Ticket
from serve.http.errors import ApiError
from serve.service import Model, Service

_WAVE = 64  # texts of one request that are in line at once
_AGAIN = 0.05  # seconds until a line that was full is looked at again


def text_ids(model: Model, text: str, param: str, most: int | None = None) -> list[int]:
    """Ids of a text and its end; most: how many of them are kept, None: all, which must fit."""
    if most is None:
        check_texts(model, [text], param)
    try:
        ids, end = whole_ids(model.tokenizer, text), end_of(model.tokenizer)
    except ValueError as error:
        raise ApiError(400, str(error), param) from None
    if most is not None and len(ids) > most:
        ids = [*ids[: most - len(end)], *end]
    return check_ids(model, ids, param)


def check_ids(model: Model, ids: list[int], param: str) -> list[int]:
    """Raises a 400 for what cannot be read."""
    if not ids:
        raise ApiError(400, "a text has no tokens, wanted at least one", param)
    if max(ids) >= model.config.vocab:
        message = f"a text has id {max(ids)}, this model has ids up to {model.config.vocab - 1}"
        raise ApiError(400, message, param)
    if len(ids) >= model.length:
        raise too_long(model, f"{len(ids)} tokens", 1, param)
    return ids


async def vectors(request: HttpRequest, model: Model, texts: Sequence[list[int]]) -> list[Any]:
    """What the network says of each text; raises ApiErrors, or Gone where the client leaves."""
    seconds = request.app.state.service.settings.request_seconds
    request.state.read = sum(map(len, texts))
    try:
        async with asyncio.timeout(seconds):
            return await until_gone(request.receive, _vectors(request, model, texts))
    except TimeoutError:
        raise ApiError(504, f"the answer took longer than {seconds} s") from None


async def _vectors(request: HttpRequest, model: Model, texts: Sequence[list[int]]) -> list[Any]:
    """Not all are in line at once: others come in turn, and no line is longer than it may be."""
    service: Service = request.app.state.service
    asked = [_asked(model, request.state.tenant, ids) for ids in texts]
    wave, found = max(1, min(_WAVE, service.settings.queue)), dict[int, Any]()
    request.state.understood()  # nothing of the body is held while the texts wait
    for start in range(0, len(asked), wave):
        ticket = await _in_line(model, asked[start : start + wave], start > 0)
        try:
            async for index, update in ticket.updates():
                if update.finish in ("error", "cancelled"):
                    raise ApiError(500, "the engine failed while it answered; try again")
                found[start + index] = update.vector
        finally:
            ticket.close()
    return [found[index] for index in range(len(texts))]


async def _in_line(model: Model, asked: list[Request], begun: bool) -> Ticket:
    """begun: others of the same request were answered, so a full line is waited for."""
    while True:
        try:
            return endpoint.ticket(model, asked)
        except ApiError as error:
            if error.status != 429 or not begun:
                raise
        await asyncio.sleep(_AGAIN)


def _asked(model: Model, tenant: str, ids: list[int]) -> Request:
    return Request(
        tokens=ids,
        settings=_SETTINGS,
        max_new_tokens=1,
        emit=lambda update: None,
        tenant=tenant,
        adapter=model.adapter.number,
        prefix_scope=model.scope(tenant, len(ids)),
    )


_SETTINGS = SamplingArrays.of(Sampling(), (), 0)  # of answers, of which there are none


def usage(texts: Sequence[list[int]]) -> dict[str, int]:
    read = sum(map(len, texts))
    return {"prompt_tokens": read, "total_tokens": read}
