"""Routes and what stands before them."""

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware as Wrap
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api import adapters, chat, completions, embeddings, status, tokenize
from serve.api.sse import Gone
from serve.dialects import embed, generate, interpreter, messages, rerank, responses
from serve.http.errors import ApiError, on_api_error, on_http_error
from serve.http.keys import Keys
from serve.http.middleware import Middleware
from serve.http.pages import FILES
from serve.service import Service

_GETS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(FILES, status.page),
    "/health": status.health,
    "/ready": status.ready,
    "/metrics": status.metrics,
    "/version": status.version,
    "/openapi.json": status.description,
    "/tokenizer_info": tokenize.tokenizer_info,
    "/info": generate.info,
    "/v1/models": status.models,
    "/v1/models/{name:path}": status.model,
}
_POSTS: dict[str, Callable[..., Any]] = {
    "/v1/chat/completions": chat.complete,
    "/v1/completions": completions.complete,
    "/": embed.root,
    "/embed": embed.embed,
    "/generate": generate.generate,
    "/generate_stream": generate.generate_stream,
    "/v1/embeddings": embeddings.create,
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), rerank.rank),
    "/v1/messages": messages.create,
    "/v1/messages/count_tokens": messages.count_tokens,
    "/v1/responses": responses.create,
    "/v1/responses/{id}/cancel": responses.cancel,
    "/v1/code_interpreter": interpreter.turn,
    "/v1/load_lora_adapter": adapters.load,
    "/v1/unload_lora_adapter": adapters.unload,
    "/tokenize": tokenize.tokenize,
    "/detokenize": tokenize.detokenize,
}


def build(service: Service, keys: Keys) -> Starlette:
    """The application; service.model may come later."""
    middleware = [Wrap(Middleware, service=service, keys=keys)]
    if service.settings.cors:
        allowed = Wrap(
            CORSMiddleware,
            allow_origins=service.settings.cors,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-api-key", "anthropic-version"],
        )
        middleware.insert(0, allowed)
    routes = [
        Route(path, endpoint, methods=[method])
        for method, endpoints in (("GET", _GETS), ("POST", _POSTS))
        for path, endpoint in endpoints.items()
    ]
    routes.append(Route("/v1/responses/{id}", responses.kept, methods=["GET", "DELETE"]))
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_error,
            Gone: _on_gone,
            Exception: _on_fault,
        },
        lifespan=lambda app: service.lag.watching(),
    )
    app.state.service = service
    return app


async def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the log shows it


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    """Ours to mend: the log has the trace, the client no part of it."""
    return ApiError(500, "the server made a mistake; its log says which").response(request.url.path)
