"""Response formats as grammars."""

from serve.api.schemas import ResponseFormat
from serve.http.errors import ApiError
from serve.service import Model
from serve.text.grammar import Constraint, Grammar, Unusable, of_pattern, of_rules, of_schema


def grammar_of(wanted: ResponseFormat | None) -> Grammar | None:
    """What the text of an answer has to follow, if anything."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is not None:
        return of_schema(wanted.json_schema.schema_, wanted.json_schema.strict)
    if wanted.pattern is not None:
        return of_pattern(wanted.pattern)
    if wanted.grammar is not None:
        return of_rules(wanted.grammar)
    return of_schema({"type": "object"})


def compiled(model: Model, grammar: Grammar) -> Constraint:
    """Raises a 400 for one that cannot be used."""
    try:
        return model.grammars.compile(grammar)
    except Unusable as error:
        raise ApiError(400, f"response_format cannot be used: {error}", "response_format") from None
