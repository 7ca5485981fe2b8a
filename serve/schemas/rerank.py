"""What requests to rank documents may hold: those of Jina's and Cohere's clients."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from serve.schemas import unasked
from serve.schemas.fields import Fields
from serve.schemas.requests import ModelName

MAX_DOCUMENTS = 2048
_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


def _named(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


class Document(Fields):
    text: str


class RerankRequest(Fields):
    """A query, documents, and how many of the best are wanted."""

    labels, idle = unasked.LABELS, unasked.RERANK

    model: ModelName = None
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[
        list[Annotated[Document, BeforeValidator(_named, json_schema_input_type=str | Document)]],
        Field(min_length=1, max_length=MAX_DOCUMENTS),
    ]
    top_n: _Count | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: _Count | None = None
    instruction: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
