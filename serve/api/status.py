"""What the server says of itself."""

import asyncio
from importlib.metadata import version as installed

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwen_jax.sandbox import interpreter
from serve.api import endpoint, openapi
from serve.http.errors import ApiError
from serve.http.pages import FILES, POLICY
from serve.service import Model, Service

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# how to ask for code on the way to an answer: see /v1/code_interpreter
_INTERPRETER = {"ask": interpreter.ASK, "stop": interpreter.STOP, "runs": interpreter.RUNS}
_VERSION = installed("qwen_jax")  # a file is read for it


async def page(request: Request) -> Response:
    """A file of the chat page."""
    kind, content = FILES[request.url.path]
    return Response(content, media_type=kind, headers=_HEADERS)


async def health(request: Request) -> Response:
    """200 while the process is worth keeping; an orchestrator restarts it otherwise."""
    service: Service = request.app.state.service
    dead = service.failure or (service.model is not None and not service.model.engine.alive)
    if dead:
        raise ApiError(503, service.trouble)
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """200 while requests are taken; a load balancer looks elsewhere otherwise."""
    service: Service = request.app.state.service
    if service.trouble:
        raise ApiError(503, service.trouble, headers={"Retry-After": "5"})
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    service: Service = request.app.state.service
    text = await asyncio.to_thread(service.metrics.text)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")  # where a request says nothing


async def version(request: Request) -> Response:
    return JSONResponse({"version": _VERSION})


async def models(request: Request) -> Response:
    """The list of models: the one that was loaded, and each of its adapters."""
    service: Service = request.app.state.service
    found = [endpoint.model(service, None), *service.named.values()]
    return JSONResponse({"object": "list", "data": [_described(service, one) for one in found]})


async def model(request: Request) -> Response:
    """One of them."""
    service: Service = request.app.state.service
    return JSONResponse(_described(service, endpoint.model(service, request.path_params["name"])))


def _described(service: Service, found: Model) -> dict[str, object]:
    described = {
        "id": found.name,
        "object": "model",
        "created": service.created,
        "owned_by": "qwen_jax",
        "max_model_len": found.length,
        "max_model_len_reason": found.room.length_reason(service.settings, found.config),
        "cache_tokens": found.room.tokens,
        "cache_tokens_reason": found.room.reason(service.settings, found.config),
        "sampling": {name: getattr(found.defaults.sampling, name) for name in _SAMPLING},
        "parent": endpoint.model(service, None).name if found.adapter.number else None,
    }
    if service.settings.run_generated_code:
        described["code_interpreter"] = _INTERPRETER
    return described


async def description(request: Request) -> Response:
    """The API in OpenAPI's words."""
    content = await asyncio.to_thread(openapi.document)
    return Response(content, media_type="application/json")
