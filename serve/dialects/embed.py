"""/embed, and / of a model that embeds: text-embeddings-inference, as huggingface_hub asks it."""

from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from qwen_jax.embeddings import shortened
from serve.api import endpoint, pooled
from serve.api.embeddings import dimensions_of
from serve.dialects import generate
from serve.http.errors import ApiError, shown
from serve.schemas.embeddings import EmbedRequest
from serve.service import Model, Service


async def embed(request: Request) -> Response:
    """A list of vectors."""
    fields = await endpoint.read(request, EmbedRequest)
    model = endpoint.model(request.app.state.service, None, "embed")
    width = dimensions_of(model, fields.dimensions)
    texts = await endpoint.work(request, _ids, model, fields)
    found = await pooled.vectors(request, model, texts)

    def answer() -> Any:
        made = shortened(np.stack(found), width, fields.normalize)
        return (vector.tolist() for vector in made)

    return endpoint.rendered(request, 12 * width * len(texts), answer)


async def root(request: Request) -> Response:
    """What huggingface_hub's clients mean by the address alone: the model's own task."""
    service: Service = request.app.state.service
    embeds = service.model is not None and service.model.task == "embed"
    return await (embed(request) if embeds else generate.generate(request))


def _ids(model: Model, fields: EmbedRequest) -> list[list[int]]:
    texts = [fields.inputs] if isinstance(fields.inputs, str) else fields.inputs
    before = ""
    if fields.prompt_name is not None:
        if fields.prompt_name not in model.prompts:
            known = ", ".join(map(repr, model.prompts)) or "none"
            message = f"there is no prompt {shown(fields.prompt_name)!r}, this model has {known}"
            raise ApiError(400, message, "prompt_name")
        before = model.prompts[fields.prompt_name]
    most = model.length - 1 if fields.truncate else None
    return pooled.ids_of(model, [before + text for text in texts], "inputs", most)
