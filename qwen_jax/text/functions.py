"""Functions that a model may call, in OpenAI's form, whatever form they came in."""

from collections.abc import Mapping
from typing import Any

_OPENAI = {"name", "description", "parameters", "strict"}


def function_name(function: Mapping[str, Any]) -> Any:
    """The original's API has a name for people and one for models."""
    return function.get("name_for_model") or function.get("name")


def openai_function(function: Mapping[str, Any]) -> dict[str, Any]:
    """What a template is shown; null says that a field is not there."""
    given = {name: value for name, value in function.items() if value is not None}
    if given.keys() <= _OPENAI:
        return given
    made = {"name": function_name(given)}
    if description := given.get("description_for_model") or given.get("description"):
        made["description"] = description
    if "parameters" in given:
        made["parameters"] = given["parameters"]
    return made
