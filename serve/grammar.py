"""Answers that follow a JSON schema, a regular expression or a grammar."""

import base64
import json
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher

from qwen_jax.tokenizer import Tokenizer
from serve import guard

MAX_SOURCE = 64 * 1024  # characters of a schema, pattern or grammar


class Grammars:
    """Compiles grammars for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer, rows: int, ends: Sequence[int]):
        """rows: ids the model scores. ends: those that end an answer, allowed where it may."""
        content = vocabulary(tokenizer, rows, ends)
        self._tokenizer, self._guard = guard.engine(content), guard.Guard(content)

    def json_schema(self, schema: dict[str, Any]) -> "Constraint":
        return self.compile("schema", json.dumps(schema))

    def compile(self, kind: str, source: str) -> "Constraint":
        """kind: schema, pattern or grammar (Lark's). Takes up to seconds.

        Raises ValueError for what is malformed, too large or too dear.
        """
        try:
            if len(source) > MAX_SOURCE:
                raise ValueError(f"it has {len(source)} characters, at most {MAX_SOURCE} fit")
            self._guard.check(kind, source)
            return Constraint(guard.compiled(self._tokenizer, kind, source))
        except ValueError as error:
            raise ValueError(f"the {kind} cannot be used: {error}") from None

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
