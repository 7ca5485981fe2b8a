"""Response formats as grammars."""

from collections.abc import Sequence

from serve.api.choices import Choice
from serve.http.errors import ApiError
from serve.schemas.formats import FormatFields, ResponseFormat
from serve.service import Model
from serve.text.grammar import (
    Constraint,
    Form,
    Grammar,
    Rules,
    Unusable,
    of_ebnf,
    of_pattern,
    of_rules,
    of_schema,
    quoted,
)


def form_of(fields: FormatFields) -> Form | None:
    """What the text of an answer has to follow, if anything; raises a 400."""
    if fields.form is None:
        return None
    field, wanted = fields.form
    try:
        return Form(_grammar(wanted), field)
    except Unusable as error:
        raise _unusable(field, error) from None


def _grammar(wanted: ResponseFormat) -> Grammar:
    if wanted.json_schema is not None:
        return of_schema(wanted.json_schema.schema_, wanted.json_schema.strict)
    if wanted.pattern is not None:
        return of_pattern(wanted.pattern)
    if wanted.grammar is not None:
        return (of_ebnf if wanted.type == "ebnf" else of_rules)(wanted.grammar)
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
    if rules.body is not None and rules.blamed != rules.body_blamed:
        try:
            model.grammars.compile(Rules(rules.body))
        except Unusable as fault:
            return _unusable(rules.body_blamed, fault)
    return _unusable(rules.blamed, error)


def _unusable(field: str, error: Unusable) -> ApiError:
    return ApiError(400, f"{field} cannot be used: {error}", field)
