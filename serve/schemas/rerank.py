"""What requests to rank documents may hold: Jina's, Cohere's, and text-embeddings-inference's."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

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
    """A query, documents, and how many of the best are wanted; or a query and texts."""

    labels, idle = unasked.LABELS, unasked.RERANK

    model: ModelName = None
    query: Annotated[str, Field(min_length=1)]
    instruction: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    documents: (
        Annotated[
            list[
                Annotated[Document, BeforeValidator(_named, json_schema_input_type=str | Document)]
            ],
            Field(min_length=1, max_length=MAX_DOCUMENTS),
        ]
        | None
    ) = None
    top_n: _Count | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: _Count | None = None
    # text-embeddings-inference's
    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False  # what is too long for the model

    @model_validator(mode="after")
    def _check(self) -> "RerankRequest":
        if (self.documents is None) == (self.texts is None):
            raise ValueError("wanted either documents or texts")
        form, others = ("texts", _OF_TEXTS) if self.texts is None else ("documents", _OF_DOCUMENTS)
        if wrong := sorted(self.model_fields_set & others):
            raise ValueError(f"{wrong[0]} goes with {form}, which was not sent")
        return self

    @property
    def ranked(self) -> list[str]:
        """What is to be ranked, by either name."""
        return self.texts or [document.text for document in self.documents or ()]


_OF_DOCUMENTS = {"top_n", "return_documents", "max_tokens_per_doc"}
_OF_TEXTS = {"raw_scores", "return_text", "truncate"}
