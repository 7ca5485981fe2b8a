"""What requests may hold: every field is bounded, every other one refused by name."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from qwen_jax.decoding.sampling import MAX_BIASES, MAX_LOGPROBS, MAX_STOPS

MAX_MESSAGES, MAX_TOOLS, MAX_STOP_CHARACTERS = 2048, 128, 256
MAX_FIELDS = 100  # of an object, known or not
_MOST = 2**31 - 1
_FIRST = Field(fail_fast=True)  # what is said of a list is its first fault

Name = Annotated[str, Field(min_length=1, max_length=64)]
Id = Annotated[int, Field(ge=0, le=_MOST)]
Ids = Annotated[list[Id], _FIRST]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class Fields(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        """Before anything is said of each of them."""
        if isinstance(given, dict) and len(given) > MAX_FIELDS:
            raise ValueError(f"{len(given)} fields, at most {MAX_FIELDS} are taken")
        return given


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _text(value: Any) -> Any:
    """Content as one string; OpenAI also allows a list of parts."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise ValueError(f"content part {str(kind)[:40]!r} is not supported, only text is")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError("a text part has a type and a text, nothing else")
        texts.append(part["text"])
    return "".join(texts)


def _few_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"{len(value)} biases, at most {MAX_BIASES} are taken")
    return value


Biases = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_few_biases)
]
Content = Annotated[str | None, BeforeValidator(_text)]


class StreamOptions(Fields):
    include_usage: bool = False


class SamplingFields(Fields):
    """How tokens are chosen; what is absent is as the checkpoint's makers would have it."""

    model: Annotated[str, Field(max_length=256)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=0, le=_MOST)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=1e-9, le=1)
    top_k: int | None = Field(None, ge=-1, le=_MOST)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=1e-3, le=1e3)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Biases | None = Field(None, max_length=MAX_BIASES)
    min_tokens: int | None = Field(None, ge=0, le=_MOST)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: (
        Annotated[list[Stop], _FIRST, Field(max_length=MAX_STOPS), BeforeValidator(_listed)] | None
    ) = None
    stop_token_ids: Ids | None = Field(None, max_length=MAX_STOPS)
    ignore_eos: bool = False
    user: str | None = Field(None, max_length=1024)  # OpenAI's own bookkeeping; asks for nothing

    @model_validator(mode="after")
    def _check(self) -> "SamplingFields":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self


class Function(Fields):
    """A function in OpenAI's form, or with the names of the original Qwen API."""

    name: Name | None = None
    description: str | None = None
    parameters: JsonValue = None
    strict: bool | None = None
    name_for_model: Name | None = None
    name_for_human: Name | None = None
    description_for_model: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "Function":
        if not (self.name or self.name_for_model):
            raise ValueError("a function needs a name")
        return self


class Tool(Fields):
    type: Literal["function"]
    function: Function


class FunctionName(Fields):
    name: Name


class ToolName(Fields):
    type: Literal["function"]
    function: FunctionName


class FunctionCall(Fields):
    name: Name
    arguments: str


class ToolCall(Fields):
    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Fields):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    reasoning_content: str | None = None  # of an earlier answer; what of it counts, templates say
    name: Name | None = None  # of the function that answers
    function_call: FunctionCall | None = None
    tool_calls: Annotated[list[ToolCall], _FIRST] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    refusal: None = None

    @model_validator(mode="after")
    def _check(self) -> "Message":
        calls = self.tool_calls or self.function_call
        if calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} cannot call functions")
        if self.reasoning_content is not None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} has no reasoning_content")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id goes with messages of role tool, and only with those")
        if self.content is None and self.role not in ("assistant", "user"):
            raise ValueError(f"a message of role {self.role} needs content")
        return self


class JsonSchema(Fields):
    name: Annotated[str, Field(max_length=64)]
    description: str | None = None
    schema_: dict[str, JsonValue] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """OpenAI's three types, and beside them "regex" with a pattern, "grammar" with Lark's."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    pattern: str | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "ResponseFormat":
        needs = {"json_schema": "json_schema", "regex": "pattern", "grammar": "grammar"}
        given = {name for name in needs.values() if getattr(self, name) is not None}
        wanted = {needs[self.type]} if self.type in needs else set()
        if given != wanted:
            raise ValueError(
                f"the type {self.type} goes with {sorted(wanted)}, got {sorted(given)}"
            )
        return self


class TemplateArguments(Fields):
    enable_thinking: bool | None = None


class ChatRequest(SamplingFields):
    messages: Annotated[list[Message], _FIRST] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=_MOST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[Tool], _FIRST] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolName | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], _FIRST] | None = Field(None, max_length=MAX_TOOLS)
    function_call: Literal["none", "auto"] | FunctionName | None = None
    response_format: ResponseFormat | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None

    @property
    def thinking(self) -> bool | None:
        """enable_thinking in either form; clients of several servers send both."""
        return next(iter(self._thinking), None)

    @property
    def _thinking(self) -> set[bool]:
        form = self.chat_template_kwargs
        given = {self.enable_thinking, form.enable_thinking if form else None}
        return {one for one in given if one is not None}

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.tools is not None and self.functions is not None:
            raise ValueError("tools and functions are two forms of one thing; send one of them")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice needs tools")
        if self.parallel_tool_calls is not None and not self.tools:
            raise ValueError("parallel_tool_calls needs tools")
        if self.function_call not in (None, "none") and not self.functions:
            raise ValueError("function_call needs functions")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens mean the same; send one of them")
        if len(self._thinking) > 1:
            raise ValueError("enable_thinking and chat_template_kwargs contradict each other")
        return self


def _kind(prompt: Any) -> str:
    """Which of its forms a prompt has, by its first item: what is wrong is wrong in that form."""
    if not isinstance(prompt, list):
        return "text"
    first = prompt[0] if prompt else ""
    return "texts" if isinstance(first, str) else "several" if isinstance(first, list) else "ids"


Texts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], _FIRST, Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], _FIRST, Tag("several")],
    Discriminator(_kind),
]


class CompletionRequest(SamplingFields):
    prompt: Texts
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    response_format: ResponseFormat | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class TokenizeRequest(Fields):
    model: Annotated[str, Field(max_length=256)] | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], _FIRST] | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES
    )
    add_special_tokens: bool = True  # vLLM's clients send it; no Qwen adds any
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("wanted either a prompt or messages")
        return self


class DetokenizeRequest(Fields):
    model: Annotated[str, Field(max_length=256)] | None = None
    tokens: Ids
