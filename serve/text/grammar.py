"""Answers that follow a JSON schema, a regular expression or a grammar."""

import base64
import json
import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from qwen_jax.text.tokenizer import Tokenizer
from serve.text import guard
from serve.text.plain import outline, without_unknown_formats
from serve.threads import Threads

MAX_SOURCE = 64 * 1024  # characters of a schema, pattern or grammar
# Between the parts of JSON; without a limit a model may write nothing else for ever.
SPACING = {"whitespace_pattern": r"[\x20\x0A]{0,40}"}

GUARDS = 2  # grammars that are checked at once, each in a process of its own
_MASKS = 4  # threads that find what may come next
_SECONDS = 2.0  # for that; an answer whose next token takes longer to allow ends

Grammar = Mapping[str, Any]  # as the library has it


@dataclass(frozen=True)
class Form:
    """What the text of an answer has to follow, and the field of the request that says so."""

    grammar: Grammar
    field: str


@dataclass(frozen=True)
class Rules:
    """What an answer has to follow. body: what they call @body.

    blamed: the field they are from. body_blamed: the one that the body is from.
    """

    answer: Grammar
    body: Grammar | None = None
    blamed: str = "response_format"
    body_blamed: str = "response_format"
    instead: "Rules | None" = None  # where these cannot be used, and need not be in every keyword


def alone(form: Form) -> Rules:
    """Rules of an answer that is a text and nothing else."""
    loose = outlined(form.grammar)
    instead = None if loose is form.grammar else Rules(loose)
    return Rules(form.grammar, blamed=form.field, instead=instead)


def outlined(body: Grammar) -> Grammar:
    """The same, or of a schema that is not strict what can always be enforced."""
    schema = body.get("json_schema")
    if schema is None or not schema["x-guidance"].get("lenient"):
        return body
    return of_schema(outline(schema))


class Unusable(ValueError):
    """A grammar that is malformed, too large or too dear."""


def enforced(schema: Mapping[str, Any], strict: bool | None) -> dict[str, Any]:
    """A schema as the library reads it. Unless strict, keywords it cannot enforce are let pass."""
    schema = without_unknown_formats(schema)
    given = schema.get("x-guidance")
    options = {**(given if isinstance(given, dict) else {}), **SPACING}
    if not strict:
        options["lenient"] = True
    return {**schema, "x-guidance": options}


def of_schema(schema: Mapping[str, Any], strict: bool | None = None) -> Grammar:
    return {"json_schema": enforced(schema, strict)}


def of_pattern(pattern: str) -> Grammar:
    return {"lark_grammar": f"start: /{regex_to_lark(pattern)}/"}


def of_rules(rules: str) -> Grammar:
    """rules: Lark's, from `start`."""
    return {"lark_grammar": rules}


def of_ebnf(rules: str) -> Grammar:
    """rules: llama.cpp's, from `root`, or Lark's; raises Unusable."""
    _bounded(rules)
    try:
        return of_rules(any_to_lark(rules))
    except Exception as error:  # the library has no kinds of errors
        raise Unusable(f"it cannot be read: {str(error)[:200]}") from None


def _bounded(source: str) -> None:
    if len(source) > MAX_SOURCE:
        raise Unusable(f"it has {len(source)} characters, at most {MAX_SOURCE} fit")


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
        self._tokenizer, self._masks = guard.engine(content), Threads("masks", _MASKS)
        self._guards = [guard.Guard(content) for _ in range(GUARDS)]
        self._free: queue.SimpleQueue[guard.Guard] = queue.SimpleQueue()
        for one in self._guards:
            self._free.put(one)

    def compile(self, rules: Rules) -> "Constraint":
        """Takes up to seconds; raises Unusable."""
        body = [] if rules.body is None else [{**rules.body, "name": "body"}]
        source = json.dumps({"grammars": [rules.answer, *body]}, ensure_ascii=False)
        try:
            _bounded(source)
            free = self._free.get()
            try:
                free.check(source)
            finally:
                self._free.put(free)
            matcher = guard.compiled(self._tokenizer, source)
            return Constraint(matcher, self._masks, matcher.deep_copy().compute_bitmask())
        except ValueError as error:
            raise Unusable(str(error)) from None

    def close(self) -> None:
        self._masks.close()
        for one in self._guards:
            one.close()


class Constraint:
    """Where one answer stands in its grammar.

    What may come next is found by other threads, since it can take long: the engine goes on with
    its other answers meanwhile.
    """

    def __init__(self, matcher: LLMatcher, threads: Threads, first: bytes):
        """first: what `mask` gives."""
        self._matcher, self._threads, self._first = matcher, threads, first
        self._next: Future[bytes] = Future()
        self._next.set_result(first)
        self._since, self.finish = 0.0, ""

    def copy(self) -> "Constraint":
        """Another answer at the beginning."""
        return Constraint(self._matcher.deep_copy(), self._threads, self._first)

    def mask(self, patience: float = 0.0) -> bytes:
        """A bit for every id that may come next; none at all while that is not known.

        patience: seconds to wait for it. After too many of them the answer is finished.
        """
        try:
            return self._next.result(patience)
        except TimeoutError:
            if time.monotonic() - self._since > _SECONDS:
                self.finish = "length"
            return b""

    def accept(self, token: int) -> None:
        """After it the answer may be finished: it is whole, or what may follow passes a limit."""
        self._matcher.consume_token(token)
        if self._matcher.is_stopped():
            self.finish = "length" if self._matcher.is_error() else "stop"
        else:
            self._since = time.monotonic()
            self._next = self._threads.submit(self._matcher.compute_bitmask)


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
