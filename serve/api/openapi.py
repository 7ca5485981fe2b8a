"""The API described for machines."""

import functools
import json
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.schemas.adapters import LoadRequest, UnloadRequest
from serve.schemas.embeddings import EmbeddingsRequest, EmbedRequest
from serve.schemas.generate import GenerateRequest, StreamRequest
from serve.schemas.interpreter import TurnRequest
from serve.schemas.messages import CountRequest, MessagesRequest
from serve.schemas.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from serve.schemas.rerank import RerankRequest
from serve.schemas.responses import ResponsesRequest

_POSTS: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer a conversation"),
    "/v1/completions": (CompletionRequest, "Continue or score texts"),
    "/v1/responses": (ResponsesRequest, "Answer what is said, as OpenAI's newer API does"),
    "/v1/messages": (MessagesRequest, "Answer a conversation, as Anthropic's API does"),
    "/v1/messages/count_tokens": (CountRequest, "How many tokens its prompt has"),
    "/generate": (GenerateRequest, "Continue a text, as text-generation-inference does"),
    "/generate_stream": (StreamRequest, "The same, event by event"),
    "/v1/embeddings": (EmbeddingsRequest, "Vectors of texts"),
    "/embed": (EmbedRequest, "The same, as text-embeddings-inference does"),
    "/v1/rerank": (RerankRequest, "Rank documents by how they answer a query"),
    "/v2/rerank": (RerankRequest, "The same, as Cohere's clients ask for it"),
    "/rerank": (RerankRequest, "The same"),
    "/v1/code_interpreter": (TurnRequest, "Run the code of an answer that is being written"),
    "/v1/load_lora_adapter": (LoadRequest, "Load an adapter into the running server"),
    "/v1/unload_lora_adapter": (UnloadRequest, "Take an adapter out of it"),
    "/tokenize": (TokenizeRequest, "Ids of a text or a conversation"),
    "/detokenize": (DetokenizeRequest, "Text of ids"),
}
_GETS = {
    "/info": "What is served, as text-generation-inference says it",
    "/v1/models": "The models",
    "/tokenizer_info": "What clients need to know of the tokenizer",
    "/health": "Whether the process is well",
    "/ready": "Whether requests are taken",
    "/metrics": "Numbers for Prometheus",
    "/version": "The version",
    "/openapi.json": "This description",
}
# of what was answered before: path -> what can be done there
_KEPT = {
    "/v1/responses/{id}": {"get": "A response that is kept", "delete": "Forget it"},
    "/v1/responses/{id}/cancel": {"post": "End a response that is being written"},
}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STRINGS = {name: {"type": "string"} for name in ("type", "message")}
_ANTHROPIC = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "required": list(_STRINGS), "properties": _STRINGS},
    },
}
_GENERATE = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
_ERRORS = {
    "/v1/messages": "AnthropicError",
    "/generate": "GenerateError",
    "/embed": "GenerateError",
}  # of other dialects, by how their paths begin


@functools.cache
def document() -> bytes:
    """OpenAPI's JSON; the first time it takes long."""
    return json.dumps(_document()).encode()


def _document() -> dict[str, Any]:
    kinds = [(kind, "validation") for kind, _ in _POSTS.values()]
    names, definitions = models_json_schema(
        kinds,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for path, summary in _GETS.items():
        paths[path] = {
            "get": {"summary": summary, "responses": _responses(400, 401, 403, 421, 503)}
        }
    for path, (kind, summary) in _POSTS.items():
        content = {"application/json": {"schema": names[(kind, "validation")]}}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": _responses(
                    *(400, 401, 403, 404, 408, 409, 413, 415, 421, 429, 500, 503, 504),
                    error=next((e for p, e in _ERRORS.items() if path.startswith(p)), "Error"),
                ),
            }
        }
    for path, methods in _KEPT.items():
        paths[path] = {
            method: {
                "summary": summary,
                "parameters": [_ID],
                "responses": _responses(400, 401, 403, 404, 405, 415, 421),
            }
            for method, summary in methods.items()
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "qwen_jax", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": {
                **definitions.get("$defs", {}),
                "Error": _ERROR,
                "AnthropicError": _ANTHROPIC,
                "GenerateError": _GENERATE,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _responses(*statuses: int, error: str = "Error") -> dict[str, Any]:
    fault = {"application/json": {"schema": {"$ref": f"#/components/schemas/{error}"}}}
    faults = {str(status): {"description": "A fault", "content": fault} for status in statuses}
    return {"200": {"description": "It went well"}, **faults}
