"""Tools of the Responses API, and which of them is to be called."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag

from serve.schemas import unasked
from serve.schemas.conversation import FIRST, MAX_TOOLS, Function, Name
from serve.schemas.fields import Fields

_KINDS = ("function", "namespace")


def joined(namespace: str | None, name: str) -> str:
    """What the model calls a function."""
    return name if namespace is None else f"{namespace}__{name}"


class FunctionTool(Function):
    """A function as this API has it, without an object of its own."""

    labels, idle = unasked.TOOL_LABELS, unasked.FUNCTION_TOOL

    type: Literal["function"]
    name: Name
    parameters: dict[str, JsonValue] | None = None

    def functions(self) -> list[tuple[str | None, str, "FunctionTool"]]:
        """Its namespace, its name for the model, itself."""
        return [(None, self.name, self)]

    def chat(self, name: str) -> dict[str, Any]:
        """The tool as chat completions have it."""
        shown = self.shown() | {"name": name}
        return {"type": shown.pop("type"), "function": shown}

    def told(self) -> dict[str, Any]:
        """The tool as a response repeats it."""
        return {"parameters": None, "strict": None, **self.shown()}


class Namespace(Fields):
    """Functions that belong together; the model sees each by the name of both."""

    type: Literal["namespace"]
    name: Name
    description: str | None = None
    tools: Annotated[list[FunctionTool], FIRST] = Field(min_length=1, max_length=MAX_TOOLS)

    def functions(self) -> list[tuple[str | None, str, FunctionTool]]:
        return [(self.name, joined(self.name, tool.name), tool) for tool in self.tools]

    def told(self) -> dict[str, Any]:
        shown = self.model_dump(include={"type", "name", "description"})
        return shown | {"tools": [tool.told() for tool in self.tools]}


def _known(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else "function"
    if kind not in _KINDS:
        raise ValueError(
            f"the built-in tool {str(kind)[:40]!r} is not supported; send tools of type function"
        )
    return value


def _kind(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else value.type


_Tool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[Namespace, Tag("namespace")],
    Discriminator(_kind),
]
Tools = Annotated[
    list[Annotated[_Tool, BeforeValidator(_known, json_schema_input_type=_Tool)]], FIRST
]


def choice(value: Any) -> Any:
    """Refuses a tool_choice of tools that there are not."""
    kind = value.get("type") if isinstance(value, dict) else "function"
    if kind not in ("function", "allowed_tools"):
        raise ValueError(f"the tool {str(kind)[:40]!r} is not supported; name a function")
    return value


class NamedFunction(Fields):
    type: Literal["function"]
    name: Name


class AllowedTools(Fields):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], FIRST] = Field(min_length=1, max_length=MAX_TOOLS)
