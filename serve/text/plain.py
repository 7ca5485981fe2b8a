"""Schemas without what the library that enforces them would refuse."""

from collections.abc import Mapping
from typing import Any

_TYPES = {"string", "number", "integer", "boolean", "null", "object", "array"}
_STANDARD = frozenset(  # formats that JSON Schema defines, and a strict schema means
    "date-time date time duration email idn-email hostname idn-hostname ipv4 ipv6 uri "
    "uri-reference iri iri-reference uuid uri-template json-pointer relative-json-pointer "
    "regex".split()
)
_VALUES = frozenset({"const", "enum", "default", "examples"})  # keywords that hold no schemas


def without_unknown_formats(schema: Any) -> Any:
    """A format that JSON Schema does not define asks for nothing."""
    if isinstance(schema, list):
        return [without_unknown_formats(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: value if name in _VALUES else without_unknown_formats(value)
        for name, value in schema.items()
        if not (name == "format" and isinstance(value, str) and value not in _STANDARD)
    }


def outline(schema: Any) -> dict[str, Any]:
    """Types, properties, items, values and choices: what can always be enforced of a schema."""
    if not isinstance(schema, Mapping):
        return {}
    made: dict[str, Any] = {}
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if kinds and all(isinstance(one, str) and one in _TYPES for one in kinds):
        made["type"] = kind
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        made["properties"] = {name: outline(value) for name, value in properties.items()}
        needed = schema.get("required")
        if isinstance(needed, list):
            names = (name for name in needed if isinstance(name, str))
            made["required"] = [name for name in names if name in properties]
    if schema.get("additionalProperties") is False and "properties" in made:
        made["additionalProperties"] = False
    if isinstance(schema.get("items"), Mapping):
        made["items"] = outline(schema["items"])
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list) and schema[name]:
            made["anyOf"] = [outline(one) for one in schema[name]]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        made = {"enum": schema["enum"]}
    return made
