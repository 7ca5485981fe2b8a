"""What requests of Anthropic's Messages API may hold."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag

from qwen_jax.decoding.sampling import MAX_STOPS
from serve.schemas import unasked
from serve.schemas.conversation import FIRST, MAX_TOOLS, CallId, Name, Ordered, content_of
from serve.schemas.fields import Fields
from serve.schemas.requests import MAX_MESSAGES, ModelName, SamplingFields, Stop

Text = Annotated[str, BeforeValidator(content_of("text"))]


class TextBlock(Fields):
    labels, idle = unasked.BLOCK_LABELS, unasked.BLOCK

    type: Literal["text"]
    text: str


class ThinkingBlock(Fields):
    labels = unasked.BLOCK_LABELS

    type: Literal["thinking"]
    thinking: str


class ToolUseBlock(Fields):
    labels, idle = unasked.BLOCK_LABELS, unasked.BLOCK

    type: Literal["tool_use"]
    id: CallId
    name: Name
    input: dict[str, JsonValue] = Field(default_factory=dict)


class ToolResultBlock(Fields):
    labels, idle = unasked.BLOCK_LABELS, unasked.BLOCK

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: Text = ""


_BLOCKS = ("text", "thinking", "tool_use", "tool_result")


def _kind(block: Any) -> Any:
    return block.get("type") if isinstance(block, dict) else getattr(block, "type", None)


def _known_block(block: Any) -> Any:
    if _kind(block) not in _BLOCKS:
        raise ValueError(
            f"blocks of type {str(_kind(block))[:40]!r} are not supported, wanted one of "
            f"{', '.join(_BLOCKS)}"
        )
    return block


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")],
    Discriminator(_kind),
]


KnownBlock = Annotated[Block, BeforeValidator(_known_block, json_schema_input_type=Block)]


def _blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Turn(Fields):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[KnownBlock],
        FIRST,
        BeforeValidator(_blocks, json_schema_input_type=str | list[KnownBlock]),
    ]


def _custom(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in (None, "custom"):
        raise ValueError(
            f"the built-in tool {str(kind)[:40]!r} is not supported; send tools with a schema"
        )
    return value


class CustomTool(Ordered):
    labels, idle = unasked.BLOCK_LABELS, unasked.CUSTOM_TOOL

    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, JsonValue]
    strict: bool | None = None

    def chat(self) -> dict[str, Any]:
        """The tool as chat completions have it."""
        names = {"input_schema": "parameters"}
        function = {names.get(k, k): v for k, v in self.shown().items() if k != "type"}
        return {"type": "function", "function": function}


class ToolChoice(Fields):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool = False


class Thinking(Fields):
    """budget_tokens is no limit of its own: max_tokens holds for thought and answer together."""

    labels, idle = unasked.THINKING_LABELS, unasked.THINKING

    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(Fields):
    type: Literal["json_schema"]
    schema_: dict[str, JsonValue] = Field(alias="schema")


class OutputConfig(Fields):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class TurnsFields(Fields):
    """A conversation in Anthropic's form."""

    labels, idle = unasked.TURNS_LABELS, unasked.TURNS

    system: Text | None = None
    messages: Annotated[list[Turn], FIRST] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: Annotated[list[Annotated[CustomTool, BeforeValidator(_custom)]], FIRST] | None = Field(
        None, max_length=MAX_TOOLS
    )
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # where it was before output_config

    @property
    def form(self) -> OutputFormat | None:
        """What form the answer has, wherever that stands."""
        return (self.output_config and self.output_config.format) or self.output_format

    @property
    def names(self) -> Mapping[str, str]:
        within = self.output_config is not None and self.output_config.format is not None
        form = "output_config.format" if within else "output_format"
        return {"response_format": form, "stop": "stop_sequences"}


class CountRequest(TurnsFields):
    """How many tokens a conversation has."""

    model: ModelName = None


class MessagesRequest(TurnsFields, SamplingFields):
    labels, idle = unasked.TURNS_LABELS, unasked.TURNS
    texts = frozenset({"system", "messages", "tools", "output_config", "output_format"})

    n: Literal[1] | None = None
    return_token_ids: Literal[False] = False
    stream_options: Literal[None] = None
    max_tokens: int = Field(ge=1, le=2**31 - 1)
    stop: Annotated[list[Stop], FIRST] | None = Field(
        None, max_length=MAX_STOPS, alias="stop_sequences"
    )
