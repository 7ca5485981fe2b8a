"""POST /v1/completions: texts, or ids, to continue or to score."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve.api import endpoint, formats, logprobs, prompting
from serve.api.choices import Choice, choices_of
from serve.api.schemas import CompletionRequest
from serve.http.errors import ApiError
from serve.service import Model
from serve.text.answer import Part, Token
from serve.text.grammar import Rules

_MAX_TOKENS = 16  # where a client does not say, as with OpenAI


async def complete(request: Request) -> Response:
    """Continue every prompt n times."""
    return await endpoint.answered(request, CompletionRequest, prepared, Reply)


def prepared(model: Model, tenant: str, fields: CompletionRequest, most: int) -> list[Choice]:
    """What the engine is asked for."""
    given = fields.prompt
    single = isinstance(given, str) or bool(given and isinstance(given[0], int))
    texts: Any = [given] if single else given
    if not texts:
        raise ApiError(400, "there is no prompt", "prompt")
    if len(texts) > most:
        raise ApiError(400, f"{len(texts)} prompts, at most {most} fit", "prompt")
    if fields.echo and fields.stream and fields.logprobs is not None:
        raise ApiError(400, "echo with logprobs cannot be streamed", "stream")
    if fields.max_tokens == 0 and not fields.echo:
        raise ApiError(400, "max_tokens 0 gives nothing without echo", "max_tokens")
    grammar = formats.grammar_of(fields.response_format)
    rules = None if grammar is None else Rules(grammar)
    try:
        prompts = [prompting.completion(model, text, rules) for text in texts]
    except ValueError as error:
        raise ApiError(400, str(error), "prompt") from None
    return choices_of(
        model,
        tenant,
        prompts,
        fields,
        _MAX_TOKENS if fields.max_tokens is None else fields.max_tokens,
        fields.logprobs,
        judged=fields.echo and fields.logprobs is not None,
        most=most,
    )


class Reply:
    """The continuations in the form of OpenAI's API."""

    def __init__(self, model: Model, fields: CompletionRequest, choices: list[Choice]):
        self._model, self._fields, self._choices = model, fields, choices
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
        }
        self._shown = [0] * len(choices)  # characters so far

    async def whole(self, working: AsyncIterator[tuple[int, Part]]) -> Callable[[], dict[str, Any]]:
        """What makes one object with everything; that may take long."""
        texts: list[list[str]] = [[] for _ in self._choices]
        tokens: list[list[Token]] = [[] for _ in self._choices]
        async for index, part in working:
            tokens[index] += part.tokens
            texts[index].append(part.message.content)
        return lambda: {
            **self._head,
            "choices": [
                self._choice(
                    index,
                    self._echo(choice) + "".join(text),
                    self._whole_logprobs(choice, tokens[index]),
                    choice.finish,
                )
                for index, (choice, text) in enumerate(zip(self._choices, texts, strict=True))
            ],
            "usage": endpoint.usage(self._choices),
        }

    async def events(
        self, working: AsyncIterator[tuple[int, Part]]
    ) -> AsyncIterator[dict[str, Any]]:
        """A chunk for whatever is new."""
        for index, choice in enumerate(self._choices):
            if text := self._echo(choice):
                yield {**self._head, "choices": [self._choice(index, text, None, None)]}
        async for index, part in working:
            text = part.message.content
            if text or part.tokens or part.finish:
                logprobs = self._logprobs(part.tokens, self._shown[index])
                self._shown[index] += len(text)
                made = self._choice(index, text, logprobs, part.finish or None)
                yield {**self._head, "choices": [made]}
        options = self._fields.stream_options
        if options is not None and options.include_usage:
            yield {**self._head, "choices": [], "usage": endpoint.usage(self._choices)}

    def _echo(self, choice: Choice) -> str:
        return self._model.tokenizer.decode(choice.prompt.ids) if self._fields.echo else ""

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: list[Token], offset: int) -> dict[str, Any] | None:
        if self._fields.logprobs is None:
            return None
        ids = [token.id for token in tokens]
        return logprobs.of_completion(self._model.tokenizer, tokens, ids, offset)

    def _whole_logprobs(self, choice: Choice, tokens: list[Token]) -> dict[str, Any] | None:
        if not self._fields.echo or self._fields.logprobs is None:
            return self._logprobs(tokens, 0)
        ids = [*choice.prompt.ids, *(token.id for token in tokens)]
        scored = [None, *choice.scores, *tokens]
        return logprobs.of_completion(self._model.tokenizer, scored, ids, 0)
