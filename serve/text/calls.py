"""What the two ways of calling functions have in common."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from qwen_jax.text.functions import function_name
from serve.text.grammar import Unusable, enforced, quoted
from serve.text.plain import outline

Otherwise = Literal["nothing", "text", "body"]  # what an answer may be that calls no function


def new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def name(function: Mapping[str, Any]) -> str:
    """What the model calls a function."""
    return str(function_name(function))


def rules(
    functions: Sequence[Mapping[str, Any]], before: Callable[[str], str], after: str = ""
) -> list[str]:
    """Lark rules of `function`: one of them by its name, with arguments that follow its schema.

    before: from a name to the text between it and the arguments. Raises Unusable for a strict
    function whose parameters are no schema.
    """
    made = ["function: " + " | ".join(f"function{n}" for n in range(len(functions)))]
    for n, function in enumerate(functions):
        made.append(f"function{n}: {quoted(before(name(function)))} arguments{n} {quoted(after)}")
        made.append(f"arguments{n}: %json {json.dumps(_schema(function))}")
    return made


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments. The original's clients may list parameters instead."""
    strict, given = function.get("strict"), function.get("parameters")
    if given is None:
        given = {"additionalProperties": False}
    elif not isinstance(given, dict):
        if strict:
            raise Unusable(f"{name(function)!r} is strict, but its parameters are no JSON schema")
        given = {}
    return enforced({"type": "object", **given}, strict)


def outlined_function(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """A function that is not strict with what can always be enforced of its parameters."""
    parameters = function.get("parameters")
    if function.get("strict") or not isinstance(parameters, dict):
        return function
    return {**function, "parameters": {**outline(parameters), "type": "object"}}
