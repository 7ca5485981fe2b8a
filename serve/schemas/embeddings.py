"""What requests for embeddings may hold: OpenAI's, and text-embeddings-inference's."""

from typing import Annotated, Literal

from pydantic import Field

from serve.schemas import unasked
from serve.schemas.fields import Fields
from serve.schemas.requests import Id, ModelName

MAX_TEXTS = 2048  # as with OpenAI
_Ids = Annotated[list[Id], Field(min_length=1)]
_Most = Annotated[int, Field(ge=1, le=2**31 - 1)]


class EmbeddingsRequest(Fields):
    """Texts or ids of texts, and in what form their vectors come back."""

    labels, idle = unasked.LABELS, unasked.EMBEDDINGS

    model: ModelName = None
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
        | _Ids
        | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: _Most | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None


class EmbedRequest(Fields):
    """Texts, as text-embeddings-inference takes them."""

    labels, idle = unasked.LABELS, unasked.EMBED

    inputs: str | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    normalize: bool = True
    truncate: bool = False  # what is too long for the model
    prompt_name: Annotated[str, Field(max_length=256)] | None = None
    dimensions: _Most | None = None
