"""POST /rerank: how well documents answer a query, in the form of Jina's and Cohere's APIs, or in
that of text-embeddings-inference.
"""

import math
import secrets
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qwen_jax.text import relevance
from serve.api import endpoint, pooled
from serve.api.window import check_texts
from serve.http.errors import ApiError
from serve.schemas.rerank import RerankRequest
from serve.service import Model


async def rank(request: Request) -> Response:
    """The best first; each score is how likely yes is, of yes and no."""
    fields = await endpoint.read(request, RerankRequest)
    model = endpoint.model(request.app.state.service, fields.model, "rerank")
    try:
        question, texts, behind = await endpoint.work(request, _ids, model, fields)
    except ValueError as error:  # of the tokenizer
        raise ApiError(400, str(error)) from None
    logits = await pooled.vectors(request, model, texts, question, behind)
    raw = [float(yes - no) for no, yes in logits]
    scores = raw if fields.raw_scores else [1 / (1 + math.exp(min(700.0, -one))) for one in raw]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: fields.top_n]
    # Jina's clients get them unless they say no, Cohere's second API has none
    shown = fields.return_text
    if fields.texts is None:
        shown = fields.return_documents is not False
        if fields.return_documents is None and request.url.path == "/v2/rerank":
            shown = False

    def answer() -> Any:
        if fields.texts is not None:
            return _told(best, "score", scores, "text", fields.texts if shown else None)
        documents = [{"text": text} for text in fields.ranked] if shown else None
        return {
            "id": f"rerank-{secrets.token_hex(12)}",
            "model": model.name,
            "results": _told(best, "relevance_score", scores, "document", documents),
            "usage": pooled.usage(texts, len(question) + len(behind)),
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }

    return endpoint.rendered(request, request.state.size if shown else 0, answer)


def _told(
    best: list[int], score: str, scores: list[float], name: str, texts: Sequence[Any] | None
) -> list[dict[str, Any]]:
    return [
        {"index": index, score: scores[index]} | ({} if texts is None else {name: texts[index]})
        for index in best
    ]


def _ids(model: Model, fields: RerankRequest) -> tuple[list[int], list[list[int]], list[int]]:
    """Ids of what stands before every text, of the texts, and of what stands behind them."""
    tokenizer, given = model.tokenizer, "documents" if fields.texts is None else "texts"
    instruction, most = fields.instruction or relevance.INSTRUCTION, fields.max_tokens_per_doc
    check_texts(model, [instruction, fields.query], "query")
    for text in () if most or fields.truncate else fields.ranked:
        check_texts(model, [instruction, fields.query, text], given)
    question = relevance.question(tokenizer, fields.query, instruction)
    behind = relevance.behind(tokenizer)
    around = len(question) + len(behind)
    pooled.check_ids(model, [*question, *behind], "query", 1)
    if fields.truncate:
        most = model.length - 1 - around
    return (
        question,
        [
            pooled.check_ids(model, tokenizer.encode(f" {text}")[:most], given, around)
            for text in fields.ranked
        ],
        behind,
    )
