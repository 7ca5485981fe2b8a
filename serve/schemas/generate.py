"""What requests of text-generation-inference may hold."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from qwen_jax.decoding.sampling import MAX_LOGPROBS
from serve.schemas import unasked
from serve.schemas.formats import ResponseFormat
from serve.schemas.requests import Body, SamplingFields

_TEXT = {"prompt": "inputs", "messages": "inputs"}


class Parameters(SamplingFields):
    labels, idle = unasked.LABELS, unasked.GENERATE

    model: None = None
    stream: Literal[False] = False
    stream_options: Literal[None] = None
    n: Literal[1] | None = None
    return_token_ids: Literal[False] = False
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1, alias="max_new_tokens")
    adapter_id: Annotated[str, Field(max_length=256)] | None = None
    do_sample: bool = False
    details: bool = False  # tokens, their log probabilities, why it ended
    decoder_input_details: bool = False  # and the prompt's
    top_n_tokens: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_full_text: bool = False
    truncate: int | None = Field(None, ge=1)  # a prompt keeps so many tokens, its last
    grammar: ResponseFormat | None = None

    @property
    def greedy(self) -> bool:
        """There is no chance unless something asks for it."""
        given = (self.temperature, self.top_k, self.top_p)
        return not self.do_sample and all(value is None for value in given)


class GenerateRequest(Body):
    """A text to continue, and how."""

    inputs: str
    parameters: Parameters = Field(default_factory=lambda: Parameters.model_validate({}))

    @property
    def wanted(self) -> str | None:
        return self.parameters.adapter_id

    @property
    def names(self) -> Mapping[str, str]:
        fields = {name: f"parameters.{name}" for name in SamplingFields.model_fields}
        own = {"max_tokens": "max_new_tokens", "response_format": "grammar"}
        return fields | {name: f"parameters.{ours}" for name, ours in own.items()} | _TEXT

    def without_texts(self) -> Self:
        kept = self.parameters.return_full_text
        parameters = self.parameters.model_copy(update={"grammar": None})
        return self.model_copy(update={"parameters": parameters} | ({} if kept else {"inputs": ""}))

    def completion(self) -> dict[str, Any]:
        """The body of the same completion, but for the prompt."""
        asked = self.parameters
        body = asked.sampling() | {"max_tokens": 100}
        if asked.max_tokens is not None:
            body["max_tokens"] = asked.max_tokens
        if asked.greedy:
            body["temperature"] = 0.0
        if asked.grammar is not None:
            body["response_format"] = asked.grammar
        if self.stream or asked.details:
            body["logprobs"] = asked.top_n_tokens or 0
            body["echo"] = asked.decoder_input_details
        return body


class StreamRequest(GenerateRequest):
    """The same; whatever it says, events are wanted."""

    idle = unasked.STREAM

    stream: Literal[True] = True
