"""Texts that give a vector each and no answer: those to embed, and documents to rank."""

import asyncio
from collections.abc import Callable, Sequence
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


def ids_of(
    model: Model, texts: Sequence[str], param: str, most: int | None = None
) -> list[list[int]]:
    """Ids of texts, each with its end; most: how many of them are kept, None: all, which must fit.

    What cannot fit is refused before the first is tokenised.
    """
    for text in texts if most is None else ():
        check_texts(model, [text], param)
    try:
        end = end_of(model.tokenizer)
        found = [whole_ids(model.tokenizer, text) for text in texts]
    except ValueError as error:
        raise ApiError(400, str(error), param) from None
    if most is not None:
        found = [[*ids[: most - len(end)], *end] if len(ids) > most else ids for ids in found]
    return [check_ids(model, ids, param) for ids in found]


def check_ids(model: Model, ids: list[int], param: str, around: int = 0) -> list[int]:
    """Raises a 400 for what cannot be read. around: how many stand before and behind it."""
    if not ids:
        raise ApiError(400, "a text has no tokens, wanted at least one", param)
    if max(ids) >= model.config.vocab:
        message = f"a text has id {max(ids)}, this model has ids up to {model.config.vocab - 1}"
        raise ApiError(400, message, param)
    if (length := len(ids) + around) >= model.length:
        raise too_long(model, f"{length} tokens", 1, param)
    return ids


async def vectors(
    request: HttpRequest,
    model: Model,
    texts: Sequence[list[int]],
    before: Sequence[int] = (),
    behind: Sequence[int] = (),
) -> list[Any]:
    """What the network says of each text; raises ApiErrors, or Gone where the client leaves.

    before, behind: ids around every one of them.
    """
    service: Service = request.app.state.service
    request.state.read = usage(texts, len(before) + len(behind))["total_tokens"]
    tenant, seconds = request.state.tenant, service.settings.request_seconds
    asked = lambda ids: _asked(model, tenant, [*before, *ids, *behind])
    request.state.understood()  # nothing of the body is held while the texts wait
    try:
        async with asyncio.timeout(seconds):
            most = max(1, min(_WAVE, service.settings.queue))
            return await until_gone(request.receive, _vectors(model, texts, asked, most))
    except TimeoutError:
        raise ApiError(504, f"the answer took longer than {seconds} s") from None


async def _vectors(
    model: Model,
    texts: Sequence[list[int]],
    asked: Callable[[list[int]], Request],
    most: int,
) -> list[Any]:
    """Not all are in line at once: others come in turn, and no line is longer than it may be."""
    found = dict[int, Any]()
    for start in range(0, len(texts), most):
        ticket = await _in_line(model, [*map(asked, texts[start : start + most])], start > 0)
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


def usage(texts: Sequence[list[int]], around: int = 0) -> dict[str, int]:
    """around: ids before and behind each of the texts."""
    read = sum(map(len, texts)) + around * len(texts)
    return {"prompt_tokens": read, "total_tokens": read}
