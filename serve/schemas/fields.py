"""What every part of a request's body has in common: what asks for nothing is taken as absent."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

MAX_FIELDS = 100  # of an object, known or not
_NULL = {"type": "null"}


class Fields(BaseModel):
    """An object whose fields are all known.

    A field is absent that is null, that only labels the request, or whose value is among those
    that ask for nothing; any other that is not known is refused by name.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )
    labels: ClassVar[frozenset[str]] = frozenset()
    idle: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # name -> values that ask for nothing

    @model_validator(mode="before")
    @classmethod
    def _asked(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if len(given) > MAX_FIELDS:  # before anything is said of each of them
            raise ValueError(f"{len(given)} fields, at most {MAX_FIELDS} are taken")
        return {name: value for name, value in given.items() if cls._asks(name, value)}

    @classmethod
    def _asks(cls, name: str, value: Any) -> bool:
        if value is None or name in cls.labels:
            return False
        # true is no 1, though Python takes them for equal
        values = [one for one in cls.idle.get(name, ()) if isinstance(one, bool) == _is_bool(value)]
        return value not in values

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        made = handler(core_schema)
        schema = handler.resolve_ref_schema(made)
        known = schema.setdefault("properties", {})
        for name in known.keys() - set(schema.get("required", ())):
            known[name] = _or_one_of(known[name], [None, *cls.idle.get(name, ())])
        for name in cls.idle.keys() - known.keys():
            known[name] = {"enum": [None, *cls.idle[name]]}
        known |= {name: {} for name in cls.labels}
        schema["additionalProperties"] = _NULL
        return made


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _or_one_of(schema: JsonSchemaValue, values: list[Any]) -> JsonSchemaValue:
    return {"anyOf": [schema, {"enum": values}]}
