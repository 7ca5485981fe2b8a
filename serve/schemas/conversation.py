"""What conversations are made of: messages, functions and calls of them."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, ModelWrapValidatorHandler, model_validator

from serve.schemas import unasked
from serve.schemas.fields import Fields

MAX_TOOLS = 128
FIRST = Field(fail_fast=True)  # what is said of a list is its first fault

Name = Annotated[str, Field(min_length=1, max_length=64)]
CallId = Annotated[str, Field(max_length=256)]


class TextPart(Fields):
    """One of the parts that content may be a list of."""

    labels, idle = unasked.PART_LABELS, unasked.PART

    type: Literal["text"]
    text: str


def content_of(*kinds: str) -> Callable[[Any], Any]:
    """What takes content as one string; it may be a list of parts of these kinds too."""

    def text(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else part
            if kind not in kinds or kind is part:
                raise ValueError(f"content part {str(kind)[:40]!r} is not supported, only text is")
        try:
            return "".join(TextPart.model_validate({**p, "type": "text"}).text for p in value)
        except ValueError:
            raise ValueError("a text part has a type and a text, nothing else") from None

    return text


Content = Annotated[str | None, BeforeValidator(content_of("text"))]


class Ordered(Fields):
    """Fields whose order counts: a template shows them to the model as the client sent them."""

    _sent: tuple[str, ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _in_order(cls, given: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        made = handler(given)
        if isinstance(given, dict):
            made._sent = tuple(given)
        return made

    def shown(self) -> dict[str, Any]:
        """What the client sent, in its order, and nothing else."""
        given = {
            name: getattr(self, name) for name in self._sent if name in type(self).model_fields
        }
        return {
            name: value.shown() if isinstance(value, Ordered) else value
            for name, value in given.items()
            if value is not None
        }


class Function(Ordered):
    """A function in OpenAI's form, or with the names of the original Qwen API."""

    labels = unasked.TOOL_LABELS

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


class Tool(Ordered):
    labels = unasked.TOOL_LABELS

    type: Literal["function"]
    function: Function


class FunctionName(Fields):
    name: Name


class ToolName(Fields):
    type: Literal["function"]
    function: FunctionName


class FunctionCall(Fields):
    labels = unasked.FUNCTION_CALL_LABELS

    name: Name
    arguments: str = "{}"

    @model_validator(mode="after")
    def _check(self) -> "FunctionCall":
        if not self.arguments.strip():  # as some models, and their clients, say that there are none
            self.arguments = "{}"
        return self


class ToolCall(Fields):
    labels = unasked.CALL_LABELS

    id: CallId
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Fields):
    labels, idle = unasked.MESSAGE_LABELS, unasked.MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    reasoning_content: str | None = None  # of an earlier answer; what of it counts, templates say
    reasoning: str | None = None  # the same under its newer name
    name: Name | None = None  # of the function that answers
    function_call: FunctionCall | None = None
    tool_calls: Annotated[list[ToolCall], FIRST] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: CallId | None = None

    @model_validator(mode="after")
    def _check(self) -> "Message":
        calls = self.tool_calls or self.function_call
        if calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} cannot call functions")
        if self.reasoning is not None and self.reasoning_content not in (None, self.reasoning):
            raise ValueError("reasoning and reasoning_content mean the same; send one of them")
        if self.thought is not None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} has no reasoning_content")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id goes with messages of role tool, and only with those")
        if self.content is None and self.role not in ("assistant", "user"):
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    @property
    def thought(self) -> str | None:
        return self.reasoning if self.reasoning_content is None else self.reasoning_content

    def said(self) -> dict[str, Any]:
        """The message as prompts are made of it."""
        made = self.model_dump(exclude_none=True, exclude={"reasoning", "reasoning_content"})
        return made if self.thought is None else {**made, "reasoning_content": self.thought}
