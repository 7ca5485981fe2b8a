"""What form an answer has to have, in the words of every server that clients come from."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, TypeAdapter, ValidationError, model_validator

from serve.schemas import unasked
from serve.schemas.conversation import FIRST
from serve.schemas.fields import Fields

MAX_WORDS = 4096
_SCHEMA: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])
Words = Annotated[list[Annotated[str, Field(min_length=1)]], FIRST]
Schema = dict[str, JsonValue]


class JsonSchema(Fields):
    name: Annotated[str, Field(max_length=64)]
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


_KINDS = {  # what a type goes with, and whether it needs it
    "text": (None, False),
    "json_object": ("schema_", False),
    "json": ("schema_", False),
    "json_schema": ("json_schema", True),
    "regex": ("pattern", True),
    "grammar": ("grammar", True),
    "ebnf": ("grammar", True),
    "choice": ("choice", True),
}


class ResponseFormat(Fields):
    """OpenAI's three types, and beside them "regex" with a pattern, "grammar" with Lark's, "ebnf"
    with llama.cpp's and "choice" with words. json_object may have a schema, "json" is the same;
    Hugging Face calls each of these a value.
    """

    type: Literal[
        "text", "json_object", "json", "json_schema", "regex", "grammar", "ebnf", "choice"
    ]
    json_schema: JsonSchema | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    pattern: str | None = None
    grammar: str | None = None
    choice: Words | None = Field(default=None, min_length=1, max_length=MAX_WORDS)
    value: str | Schema | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_value(cls, given: Any) -> Any:
        """A value under the name that its type has for it."""
        if not isinstance(given, dict) or given.get("value") is None:
            return given
        name, _ = _KINDS.get(str(given.get("type")), (None, False))
        name = "schema" if name == "schema_" else name
        if name is None or given.get(name) is not None:
            raise ValueError("a value goes with a type that needs one, and stands alone")
        rest = {one: given[one] for one in given if one != "value"}
        return rest | {name: given["value"]}

    @model_validator(mode="after")
    def _check(self) -> "ResponseFormat":
        names = {name for name, _ in _KINDS.values() if name}
        given = {name for name in names if getattr(self, name) is not None}
        wanted, needed = _KINDS[self.type]
        if given - {wanted} or (needed and not given):
            shown = lambda known: sorted(name.strip("_") for name in known if name)
            raise ValueError(
                f"the type {self.type} goes with {shown([wanted])}, got {shown(given)}"
            )
        return self


class StructuredOutputs(Fields):
    """vLLM's."""

    idle = unasked.STRUCTURED_OUTPUTS

    json_: str | Schema | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Words | None = Field(default=None, min_length=1, max_length=MAX_WORDS)
    grammar: str | None = None
    json_object: bool | None = None


class FormatFields(Fields):
    """One of many ways to say what an answer has to follow."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    regex: str | None = None  # SGLang's
    ebnf: str | None = None
    json_schema: str | Schema | None = None  # llama.cpp's and SGLang's
    grammar: str | None = None  # llama.cpp's
    guided_json: str | Schema | None = None  # vLLM's of before
    guided_regex: str | None = None
    guided_choice: Words | None = Field(default=None, min_length=1, max_length=MAX_WORDS)
    guided_grammar: str | None = None

    @property
    def form(self) -> tuple[str, ResponseFormat] | None:
        """What was asked for, whichever way, and the field that asks for it."""
        return next(self._forms(), None)

    def _forms(self) -> Iterator[tuple[str, ResponseFormat]]:
        if self.response_format is not None and self.response_format.type != "text":
            yield "response_format", self.response_format
        outputs = self.structured_outputs or StructuredOutputs()
        if outputs.json_object:
            yield "structured_outputs.json_object", ResponseFormat(type="json_object")
        within = {f"structured_outputs.{name}": getattr(outputs, at) for name, at in _OUTPUTS}
        for name, given in (within | {name: getattr(self, name) for name in _WAYS}).items():
            if given is not None:
                yield name, _way(name, given)

    @model_validator(mode="after")
    def _one_format(self) -> "FormatFields":
        names = [name for name, _ in self._forms()]
        if len(names) > 1:
            raise ValueError(
                f"{' and '.join(names)} say what form the answer has; send one of them"
            )
        return self


_OUTPUTS = [(name.strip("_"), name) for name in ("json_", "regex", "choice", "grammar")]
_WAYS = (
    "regex ebnf json_schema grammar guided_json guided_regex guided_choice guided_grammar".split()
)


def _way(name: str, given: Any) -> ResponseFormat:
    """What a field of one meaning asks for."""
    match name.rpartition(".")[2].removeprefix("guided_"):
        case "regex":
            return ResponseFormat(type="regex", pattern=given)
        case "choice":
            return ResponseFormat(type="choice", choice=given)
        case "ebnf" | "grammar":
            return ResponseFormat(type="ebnf", grammar=given)
        case _:
            return ResponseFormat(type="json_object", schema=_schema_of(name, given))


def _schema_of(name: str, given: str | Schema) -> Schema:
    """A schema, which may come as its JSON; raises ValueError."""
    if not isinstance(given, str):
        return given
    try:
        return _SCHEMA.validate_json(given)
    except ValidationError:
        raise ValueError(f"{name} is sent as text and has to be JSON then, an object") from None
