"""POST /v1/embeddings: a vector for every text."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from qwen_jax.embeddings import check_dimensions, shortened
from serve.api import endpoint, pooled
from serve.http.errors import ApiError
from serve.schemas.embeddings import EmbeddingsRequest
from serve.service import Model


async def create(request: Request) -> Response:
    """Texts, or their ids, as vectors of length 1."""
    fields = await endpoint.read(request, EmbeddingsRequest)
    model = endpoint.model(request.app.state.service, fields.model, "embed")
    width = dimensions_of(model, fields.dimensions)
    texts = await endpoint.work(request, _ids, model, fields)
    found = await pooled.vectors(request, model, texts)

    def answer() -> dict[str, Any]:
        made = shortened(np.stack(found), width, normalize=True)
        return {
            "object": "list",
            "data": (_embedding(n, one, fields.encoding_format) for n, one in enumerate(made)),
            "model": model.name,
            "usage": pooled.usage(texts),
        }

    return endpoint.rendered(request, 12 * width * len(texts), answer)


def dimensions_of(model: Model, wanted: int | None) -> int:
    """Raises a 400 for more than there are."""
    try:
        return check_dimensions(wanted, model.config.width)
    except ValueError as error:
        raise ApiError(400, str(error), "dimensions") from None


def _ids(model: Model, fields: EmbeddingsRequest) -> list[list[int]]:
    given: Any = fields.input
    single = isinstance(given, str) or isinstance(given[0], int)
    inputs: Sequence[Any] = [given] if single else given
    most = fields.truncate_prompt_tokens
    if most is not None:
        most = model.length - 1 if most < 0 else min(most, model.length - 1)
    if isinstance(inputs[0], str):
        return pooled.ids_of(model, inputs, "input", most)
    return [pooled.check_ids(model, one[:most], "input") for one in inputs]


def _embedding(index: int, vector: np.ndarray, form: str) -> dict[str, Any]:
    packed = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    made = packed if form == "base64" else vector.tolist()
    return {"object": "embedding", "index": index, "embedding": made}
