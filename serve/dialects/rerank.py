"""POST /v1/rerank: how well documents answer a query, in the form of Jina's and Cohere's APIs."""

import math
import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qwen_jax.text import relevance
from serve.api import endpoint, pooled
from serve.http.errors import ApiError
from serve.schemas.rerank import RerankRequest
from serve.service import Model


async def rank(request: Request) -> Response:
    """The best documents first; each score is how likely yes is, of yes and no."""
    fields = await endpoint.read(request, RerankRequest)
    model = endpoint.model(request.app.state.service, fields.model, "rerank")
    try:
        texts = await endpoint.work(request, _ids, model, fields)
    except ValueError as error:  # of the tokenizer
        raise ApiError(400, str(error)) from None
    logits = await pooled.vectors(request, model, texts)
    scores = [1 / (1 + math.exp(min(700.0, float(no - yes)))) for no, yes in logits]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: fields.top_n]
    # Jina's clients get them unless they say no, Cohere's second API has none
    shown = fields.return_documents
    if shown is None:
        shown = request.url.path != "/v2/rerank"

    def answer() -> dict[str, Any]:
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": scores[index]} for index in best
        ]
        for result in results if shown else ():
            result["document"] = {"text": fields.documents[result["index"]].text}
        return {
            "id": f"rerank-{secrets.token_hex(12)}",
            "model": model.name,
            "results": results,
            "usage": pooled.usage(texts),
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }

    return endpoint.rendered(request, request.state.size if shown else 0, answer)


def _ids(model: Model, fields: RerankRequest) -> list[list[int]]:
    tokenizer = model.tokenizer
    question = relevance.question(
        tokenizer, fields.query, fields.instruction or relevance.INSTRUCTION
    )
    behind = relevance.behind(tokenizer)

    def ids(text: str) -> list[int]:
        document = tokenizer.encode(f" {text}")[: fields.max_tokens_per_doc]
        return pooled.check_ids(model, [*question, *document, *behind], "documents")

    return [ids(document.text) for document in fields.documents]
