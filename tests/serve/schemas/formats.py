"""Every way to say what form an answer has, as the tables of fields have it."""

from typing import Any

GRAMMAR = {"type": "grammar", "grammar": 'start: "a"'}
RULES = 'root ::= "a"'
FORMATS: dict[str, tuple[str, str, Any]] = {
    f"FormatFields.{name}": ("chat completion", name, value)
    for name, value in {
        "response_format": {"type": "json_object"},
        "structured_outputs": {"regex": "a"},
        "regex": "a",
        "ebnf": RULES,
        "json_schema": {"type": "object"},
        "grammar": RULES,
        "guided_json": '{"type": "object"}',
        "guided_regex": "a",
        "guided_choice": ["a"],
        "guided_grammar": RULES,
    }.items()
}
FORMATS |= {
    f"StructuredOutputs.{name}": ("chat", "structured_outputs", {name.strip("_"): value})
    for name, value in {
        "json_": {"type": "object"},
        "regex": "a",
        "choice": ["a"],
        "grammar": RULES,
        "json_object": True,
    }.items()
}
FORMATS |= {
    "ResponseFormat.schema_": ("object", "response_format.schema", {"maxProperties": 0}),
    "ResponseFormat.choice": ("chat", "response_format", {"type": "choice", "choice": ["a"]}),
    "ResponseFormat.value": ("object", "response_format.value", {"maxProperties": 0}),
    "ResponseFormat.type": ("format", "response_format", {"type": "text"}),
    "ResponseFormat.json_schema": ("format", "response_format.json_schema.schema.maxProperties", 0),
    "ResponseFormat.pattern": ("chat", "response_format", {"type": "regex", "pattern": "a"}),
    "ResponseFormat.grammar": ("chat", "response_format", GRAMMAR),
    "JsonSchema.schema_": ("format", "response_format.json_schema.schema", {"type": "string"}),
    "JsonSchema.strict": ("format", "response_format.json_schema.strict", True),
}  # fmt: skip
