"""What requests may hold: every field is bounded, every other one refused by name."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from qwen_jax.decoding.sampling import MAX_BIASES, MAX_LOGPROBS, MAX_STOPS
from qwen_jax.text.chatml import Ending
from serve.schemas import unasked
from serve.schemas.conversation import (
    FIRST,
    MAX_TOOLS,
    Function,
    FunctionName,
    Message,
    Tool,
    ToolName,
)
from serve.schemas.fields import Fields
from serve.schemas.formats import FormatFields

MAX_MESSAGES, MAX_STOP_CHARACTERS = 2048, 256
_MOST = 2**31 - 1

ModelName = Annotated[str, Field(max_length=256)] | None  # None: the one that is served
Id = Annotated[int, Field(ge=0, le=_MOST)]
Ids = Annotated[list[Id], FIRST]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _few_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"{len(value)} biases, at most {MAX_BIASES} are taken")
    return value


Biases = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_few_biases)
]


class StreamOptions(Fields):
    labels = unasked.STREAM_LABELS

    include_usage: bool = False
    continuous_usage_stats: bool = False  # the usage so far in every event

    @model_validator(mode="after")
    def _check(self) -> "StreamOptions":
        if self.continuous_usage_stats and not self.include_usage:
            raise ValueError("continuous_usage_stats needs include_usage to be true")
        return self


class Body(Fields):
    """What asks for answers."""

    texts: ClassVar[frozenset[str]] = frozenset()  # fields that only the prompt is made of

    stream: bool = False

    @property
    def wanted(self) -> str | None:
        """The name of a model; None is the one that was loaded."""
        raise NotImplementedError

    @property
    def names(self) -> Mapping[str, str]:
        """What fields of a chat, or a completion, are called here, where that differs."""
        return {}

    def without_texts(self) -> Self:
        """What is left to know once the prompt is made; the rest may be megabytes."""
        return self.model_copy(update=dict.fromkeys(self.texts))


class SamplingFields(Body):
    """How tokens are chosen; what is absent is as the checkpoint's makers would have it."""

    labels, idle = unasked.LABELS, unasked.REQUEST

    model: ModelName = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=0, le=_MOST)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_MOST)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=1e-3, le=1e3)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Biases | None = Field(None, max_length=MAX_BIASES)
    min_tokens: int | None = Field(None, ge=0, le=_MOST)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: (
        Annotated[list[Stop], FIRST, Field(max_length=MAX_STOPS), BeforeValidator(_listed)] | None
    ) = None
    stop_token_ids: Ids | None = Field(None, max_length=MAX_STOPS)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    priority: int = Field(0, ge=-(2**31), le=_MOST)  # less is sooner, among those of one key

    @model_validator(mode="after")
    def _check(self) -> "SamplingFields":
        options = self.stream_options
        if options is not None and options.include_usage and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    def sampling(self) -> dict[str, Any]:
        """These fields alone, as far as they were sent, for a body of another kind."""
        names = SamplingFields.model_fields.keys() - {"stream_options"}
        return self.model_dump(include=names & self.model_fields_set)

    @property
    def wanted(self) -> str | None:
        return self.model


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateArguments(Fields):
    enable_thinking: bool | None = None


class ConversationFields(Fields):
    """A conversation, and what its template is given beside it."""

    tools: Annotated[list[Tool], FIRST] | None = Field(None, max_length=MAX_TOOLS)
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    reasoning_effort: Effort | None = None  # "none" is no thought; models have no other degrees
    add_generation_prompt: bool = True
    continue_final_message: bool = False  # what is generated goes on where the last one ends

    @property
    def ending(self) -> Ending:
        """How the prompt ends."""
        if self.continue_final_message:
            return "open"
        return "reply" if self.add_generation_prompt else "closed"

    @property
    def thinking(self) -> bool | None:
        """enable_thinking in any of its forms; clients of several servers send more than one."""
        return next(iter(self._thinking), None)

    @property
    def _thinking(self) -> set[bool]:
        form = self.chat_template_kwargs
        given = {self.enable_thinking, form.enable_thinking if form else None}
        given.add(False if self.reasoning_effort == "none" else None)
        return {one for one in given if one is not None}

    @model_validator(mode="after")
    def _check_template(self) -> "ConversationFields":
        if len(self._thinking) > 1:
            raise ValueError(
                "enable_thinking, chat_template_kwargs and reasoning_effort contradict each other"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message needs add_generation_prompt to be false")
        return self


class ChatRequest(SamplingFields, ConversationFields, FormatFields):
    texts = frozenset({"messages", "tools", "functions"}) | FormatFields.model_fields.keys()

    messages: Annotated[list[Message], FIRST] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=_MOST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tool_choice: Literal["none", "auto", "required"] | ToolName | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], FIRST] | None = Field(None, max_length=MAX_TOOLS)
    function_call: Literal["none", "auto"] | FunctionName | None = None

    def said(self) -> list[dict[str, Any]]:
        """The messages as prompts are made of them."""
        return [message.said() for message in self.messages]

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.tools is not None and self.functions is not None:
            raise ValueError("tools and functions are two forms of one thing; send one of them")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        if self.function_call not in (None, "none", "auto") and not self.functions:
            raise ValueError("function_call needs functions")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens mean the same; send one of them")
        return self


def _kind(prompt: Any) -> str:
    """Which of its forms a prompt has, by its first item: what is wrong is wrong in that form."""
    if not isinstance(prompt, list):
        return "text"
    first = prompt[0] if prompt else ""
    return "texts" if isinstance(first, str) else "several" if isinstance(first, list) else "ids"


Texts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], FIRST, Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], FIRST, Tag("several")],
    Discriminator(_kind),
]


class CompletionRequest(SamplingFields, FormatFields):
    texts = frozenset({"prompt", "suffix"}) | FormatFields.model_fields.keys()

    prompt: Texts
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    suffix: str | None = None  # the text that follows what is generated

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.suffix is not None and self.echo:
            raise ValueError("suffix and echo do not go together")
        return self


class TokenizeRequest(ConversationFields):
    labels, idle = unasked.TOKENIZE_LABELS, unasked.TOKENIZE

    model: ModelName = None
    prompt: str | None = None
    messages: Annotated[list[Message], FIRST] | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES
    )
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("wanted either a prompt or messages")
        return self


class DetokenizeRequest(Fields):
    idle = unasked.DETOKENIZE

    model: ModelName = None
    tokens: Ids
