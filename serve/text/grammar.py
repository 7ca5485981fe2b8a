"""Answers that follow a JSON schema, a regular expression or a grammar."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, regex_to_lark

from qwen_jax.text.tokenizer import Tokenizer
from serve.text import guard

MAX_SOURCE = 64 * 1024  # characters of a schema, pattern or grammar
# Between the parts of JSON; without a limit a model may write nothing else for ever.
SPACING = {"whitespace_pattern": r"[\x20\x0A]{0,40}"}

Grammar = Mapping[str, Any]  # as the library has it


class Unusable(ValueError):
    """A grammar that is malformed, too large or too dear."""


def enforced(schema: Mapping[str, Any], strict: bool | None) -> dict[str, Any]:
    """A schema as the library reads it. strict False: keywords it cannot enforce are let pass."""
    given = schema.get("x-guidance")
    options = {**(given if isinstance(given, dict) else {}), **SPACING}
    if strict is False:
        options["lenient"] = True
    return {**schema, "x-guidance": options}


def of_schema(schema: Mapping[str, Any], strict: bool | None = None) -> Grammar:
    return {"json_schema": enforced(schema, strict)}


def of_pattern(pattern: str) -> Grammar:
    return {"lark_grammar": f"start: /{regex_to_lark(pattern)}/"}


def of_rules(rules: str) -> Grammar:
    """rules: Lark's, from `start`."""
    return {"lark_grammar": rules}


def quoted(text: str) -> str:
    """A text as a Lark grammar has it."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def without(marker: str) -> str:
    """A Lark terminal: some text in which a marker does not stand."""
    return f"/(?s:.+)/ & ~(/(?s:.*)/ {quoted(marker)} /(?s:.*)/)"


class Grammars:
    """Compiles grammars for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer, rows: int, ends: Sequence[int]):
        """rows: ids the model scores. ends: those that end an answer, allowed where it may."""
        content = vocabulary(tokenizer, rows, ends)
        self._tokenizer, self._guard = guard.engine(content), guard.Guard(content)

    def compile(self, answer: Grammar, body: Grammar | None = None) -> "Constraint":
        """body: what the rules of the answer call @body. Takes up to seconds; raises Unusable."""
        parts = [answer] if body is None else [answer, {**body, "name": "body"}]
        source = json.dumps({"grammars": parts}, ensure_ascii=False)
        try:
            if len(source) > MAX_SOURCE:
                raise ValueError(f"it has {len(source)} characters, at most {MAX_SOURCE} fit")
            self._guard.check(source)
            return Constraint(guard.compiled(self._tokenizer, source))
        except ValueError as error:
            raise Unusable(str(error)) from None

    def close(self) -> None:
        self._guard.close()


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def copy(self) -> "Constraint":
        """The same place, for another answer."""
        return Constraint(self._matcher.deep_copy())

    def mask(self) -> bytes:
        """A bit for every id that may come next."""
        return self._matcher.compute_bitmask()

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """Nothing may follow; also after a limit was passed in the middle of an answer."""
        return self._matcher.is_stopped()


def vocabulary(tokenizer: Tokenizer, rows: int, ends: Sequence[int]) -> dict[str, Any]:
    """What the library needs of a tokenizer, as JSON has it."""
    encoding = tokenizer.encoding
    ranks = encoding._mergeable_ranks.items()
    return {
        "encoder": {base64.b64encode(token).decode(): rank for token, rank in ranks},
        "special_tokens": dict(tokenizer.specials),
        "pattern": encoding._pat_str,
        "eos_token": list(ends),
        "n_vocab": rows,
    }
