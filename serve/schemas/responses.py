"""What requests of OpenAI's Responses API may hold, and what they are as a conversation."""

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    model_validator,
)

from qwen_jax.decoding.sampling import MAX_LOGPROBS
from serve.schemas import unasked
from serve.schemas.conversation import (
    FIRST,
    MAX_TOOLS,
    CallId,
    Content,
    FunctionCall,
    Name,
    content_of,
)
from serve.schemas.fields import Fields
from serve.schemas.requests import MAX_MESSAGES, Effort, SamplingFields, StreamOptions
from serve.schemas.tools import AllowedTools, FunctionTool, NamedFunction, Tools, choice, joined

Id = Annotated[str, Field(max_length=256)]


class InputMessage(Fields):
    labels, idle = unasked.ITEM_LABELS, unasked.ITEM

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(content_of("input_text", "output_text", "text"))]


class CalledFunction(FunctionCall):
    labels, idle = unasked.ITEM_LABELS | FunctionCall.labels, unasked.ITEM

    type: Literal["function_call"]
    call_id: CallId
    namespace: Name | None = None  # in which the function is

    @property
    def whole_name(self) -> str:
        return joined(self.namespace, self.name)


class CallOutput(Fields):
    labels, idle = unasked.ITEM_LABELS, unasked.ITEM

    type: Literal["function_call_output"]
    call_id: CallId
    output: Annotated[str, BeforeValidator(content_of("input_text", "output_text", "text"))]


def sealed(thought: str) -> str:
    """A thought for clients that keep it unread, and send it back."""
    return base64.b64encode(thought.encode("utf-8", "replace")).decode()


class Thought(Fields):
    """What a model thought; encrypted_content has it too, in a form that clients need not read."""

    labels = unasked.ITEM_LABELS

    type: Literal["reasoning"]
    summary: Annotated[Content, BeforeValidator(content_of("summary_text"))] = None
    content: Annotated[Content, BeforeValidator(content_of("reasoning_text", "text"))] = None
    encrypted_content: str | None = None

    @property
    def text(self) -> str:
        if self.content or self.encrypted_content is None:
            return self.content or self.summary or ""
        return base64.b64decode(self.encrypted_content).decode()

    @model_validator(mode="after")
    def _check(self) -> "Thought":
        try:
            _ = self.text
        except ValueError:
            raise ValueError("encrypted_content is not what this server gave") from None
        return self


class ItemReference(Fields):
    type: Literal["item_reference"]
    id: Id


_ITEMS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _kind(item: Any) -> Any:
    given = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "item_reference" if given is None and _only_names(item) else given or "message"


def _only_names(item: Any) -> bool:
    return isinstance(item, dict) and item.keys() - {"type"} == {"id"}


def _known_item(item: Any) -> Any:
    if _kind(item) not in _ITEMS:
        raise ValueError(
            f"items of type {str(_kind(item))[:40]!r} are not supported, wanted one of "
            f"{', '.join(_ITEMS)}"
        )
    return {**item, "type": _kind(item)} if isinstance(item, dict) else item


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[CalledFunction, Tag("function_call")]
    | Annotated[CallOutput, Tag("function_call_output")]
    | Annotated[Thought, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind),
]
KnownItem = Annotated[Item, BeforeValidator(_known_item, json_schema_input_type=Item)]
ITEM: TypeAdapter[Any] = TypeAdapter(KnownItem)


def _items(value: Any) -> Any:
    """A text is one message of the user."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    return value


class TextFormat(Fields):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("a schema goes with the type json_schema, and only with that")
        return self

    def shown(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True, exclude_none=True)

    def chat(self) -> dict[str, Any]:
        """The format as chat completions have it."""
        made = self.shown()
        kind = made.pop("type")
        return {"type": kind, kind: {"name": "answer", **made}} if made else {"type": kind}


class TextOptions(Fields):
    idle = unasked.TEXT_OPTIONS

    format: TextFormat | None = None


class Reasoning(Fields):
    idle = unasked.REASONING

    effort: Effort | None = None


Includable = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    # of tools and inputs that there are not: an answer lacks none of them
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class PaddingOptions(StreamOptions):
    """Streams always end with the usage."""

    include_usage: Literal[False] = False
    continuous_usage_stats: Literal[False] = False


class ResponsesRequest(SamplingFields):
    labels = unasked.LABELS - {"store", "metadata"} | unasked.RESPONSES_LABELS
    idle = unasked.RESPONSES
    texts = frozenset({"input"})

    n: Literal[1] | None = None
    return_token_ids: Literal[False] = False
    stream_options: PaddingOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1, alias="max_output_tokens")
    input: Annotated[
        list[KnownItem],
        FIRST,
        BeforeValidator(_items, json_schema_input_type=str | list[KnownItem]),
    ] = Field([], max_length=MAX_MESSAGES)
    instructions: str | None = None
    previous_response_id: Id | None = None
    store: bool = True
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    include: Annotated[list[Includable], Field(max_length=16)] | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tools: Tools | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: (
        Annotated[
            Literal["none", "auto", "required"] | NamedFunction | AllowedTools,
            BeforeValidator(choice),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    truncation: Literal["auto", "disabled"] | None = None

    @model_validator(mode="after")
    def _check_responses(self) -> "ResponsesRequest":
        if not self.input and self.previous_response_id is None:
            raise ValueError("wanted an input")
        if isinstance(self.tool_choice, AllowedTools):
            names = {name for _, name, _ in self.functions}
            if unknown := [one.name for one in self.tool_choice.tools if one.name not in names]:
                raise ValueError(f"tool_choice names {unknown[0]!r}, which was not sent")
        return self

    @property
    def names(self) -> Mapping[str, str]:
        return {
            "messages": "input",
            "max_tokens": "max_output_tokens",
            "response_format": "text.format",
            "reasoning_effort": "reasoning.effort",
        }

    @property
    def functions(self) -> list[tuple[str | None, str, FunctionTool]]:
        """All that may be called: namespace, name for the model, function."""
        return [one for tool in self.tools or () for one in tool.functions()]

    @property
    def logged(self) -> int | None:
        """How many likely tokens are told beside each; None: no log probabilities at all."""
        if self.wants("message.output_text.logprobs") or self.top_logprobs:
            return self.top_logprobs or 0
        return None

    def wants(self, what: Includable) -> bool:
        return what in (self.include or ())
