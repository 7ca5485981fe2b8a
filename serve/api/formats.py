"""Response formats as grammars."""

from collections.abc import Sequence

from serve.api.choices import Choice
from serve.http.errors import ApiError
from serve.schemas.formats import ResponseFormat
from serve.service import Model
from serve.text.grammar import (
    Constraint,
    Grammar,
    Rules,
    Unusable,
    of_ebnf,
    of_pattern,
    of_rules,
    of_schema,
    quoted,
)


def grammar_of(wanted: ResponseFormat | None) -> Grammar | None:
    """What the text of an answer has to follow, if anything."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is not None:
        return of_schema(wanted.json_schema.schema_, wanted.json_schema.strict)
    if wanted.pattern is not None:
        return of_pattern(wanted.pattern)
    if wanted.type == "ebnf":
        try:
            return of_ebnf(wanted.grammar or "")
        except Unusable as error:
            message = f"response_format cannot be used: {error}"
            raise ApiError(400, message, "response_format") from None
    if wanted.grammar is not None:
        return of_rules(wanted.grammar)
    if wanted.choice is not None:
        return of_rules(f"start: {' | '.join(map(quoted, wanted.choice))}")
    return of_schema({"type": "object"} if wanted.schema_ is None else wanted.schema_)


def constrain(model: Model, choices: Sequence[Choice]) -> None:
    """Hold each answer to its prompt's rules; raises a 400 where these cannot be used.

    All prompts of a request have the same.
    """
    rules = choices[0].prompt.rules
    assert rules is not None
    try:
        constraint = _compiled(model, rules)
    except Unusable as error:
        raise _fault(model, rules, error) from None
    for choice in choices:
        choice.request.constraint = constraint.copy()


def _compiled(model: Model, rules: Rules) -> Constraint:
    try:
        return model.grammars.compile(rules)
    except Unusable:
        if rules.instead is None:
            raise
        return model.grammars.compile(rules.instead)


def _fault(model: Model, rules: Rules, error: Unusable) -> ApiError:
    """A format beside tools is tried by itself: its faults are not theirs."""
    if rules.body is not None and rules.blamed != "response_format":
        try:
            model.grammars.compile(Rules(rules.body))
        except Unusable as fault:
            error, rules = fault, Rules(rules.body)
    return ApiError(400, f"{rules.blamed} cannot be used: {error}", rules.blamed)
