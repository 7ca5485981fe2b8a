"""Answers with Python on the way: what the model writes runs here, and it sees what that shows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwen_jax.sandbox import interpreter
from serve.cli.client import Answer, Source


class Interpreted:
    """A source of answers that asks another one, in the form of the original's interpreter."""

    def __init__(self, source: Source):
        self.name, self._source = source.name, source

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        return self._source.settings(changes)

    def answer(
        self,
        query: str,
        history: Sequence[tuple[str, str]],
        system: str | None,
        seed: int,
        changes: Mapping[str, Any],
        begun: str = "",
    ) -> Iterator[Answer]:
        """Thoughts, code, what it shows, and the answer, as they grow."""
        stops = (*(self.settings(changes).get("stop") or ()), interpreter.STOP)
        how, asked = {**changes, "stop": stops}, interpreter.ASK + query
        tokens, answer, runs = 0, Answer(), 0
        while runs < interpreter.RUNS:
            for answer in self._source.answer(asked, history, system, seed, how, begun):
                yield Answer(begun + answer.text, tokens + answer.tokens)
            tokens += answer.tokens
            begun, shown, runs = interpreter.turn(begun, answer.text, interpreter.SECONDS)
            yield Answer(begun, tokens)
            if shown is None:
                break
        yield Answer(begun, tokens, answer.finish_reason)
