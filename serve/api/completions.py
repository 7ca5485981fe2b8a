"""POST /v1/completions: texts, or ids, to continue or to score."""

import functools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve.api import endpoint, formats, logprobs, prompting, sse
from serve.api.choices import Choice, choices_of
from serve.http.errors import ApiError
from serve.schemas.requests import CompletionRequest
from serve.service import Model
from serve.text.answer import Part, Token
from serve.text.grammar import alone

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
    if fields.max_tokens == 0 and not fields.echo:
        raise ApiError(400, "max_tokens 0 gives nothing without echo", "max_tokens")
    form = formats.form_of(fields)
    rules = None if form is None else alone(form)
    try:
        prompts = [prompting.completion(model, text, rules, fields.suffix) for text in texts]
    except prompting.NoFilling as error:
        raise ApiError(400, str(error), "suffix") from None
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


class Reply(sse.Reply):
    """The continuations in the form of OpenAI's API."""

    def __init__(self, model: Model, fields: CompletionRequest, choices: list[Choice]):
        self._model, self._fields, self._choices = model, fields.without_texts(), choices
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
        ids: list[list[int]] = [[] for _ in self._choices]
        async for index, part in working:
            tokens[index] += part.tokens
            ids[index] += part.ids
            texts[index].append(part.message.content)
        return lambda: {
            **self._head,
            "choices": [
                self._choice(
                    index,
                    self._echo(choice) + "".join(text),
                    self._judged(choice, tokens[index])
                    if self._fields.echo
                    else self._logprobs(tokens[index], 0),
                    choice.finish,
                )
                | endpoint.prompt_ids(self._fields, choice)
                | endpoint.answer_ids(self._fields, ids[index])
                for index, (choice, text) in enumerate(zip(self._choices, texts, strict=True))
            ],
            "usage": endpoint.usage(self._choices),
        }

    async def events(
        self, working: AsyncIterator[tuple[int, Part]]
    ) -> AsyncIterator[dict[str, Any] | sse.Large]:
        """A chunk for whatever is new; a prompt is echoed as soon as it is judged."""
        begun: set[int] = set()  # which prompts were told of
        async for index, part in working:
            choice, text = self._choices[index], part.message.content
            ids = endpoint.answer_ids(self._fields, part.ids)
            if index not in begun:
                ids |= endpoint.prompt_ids(self._fields, choice)
            if self._fields.echo and index not in begun:
                make = functools.partial(self._echoed, index)
                yield sse.Large(endpoint.size_of(choice), make)
            begun.add(index)
            if text or part.tokens or part.finish or ids:
                scores = self._logprobs(part.tokens, self._shown[index])
                self._shown[index] += sum(len(token.text) for token in part.tokens)
                told = self._choice(index, text, scores, part.finish or None)
                yield self._event([told | ids])
        if event := endpoint.last_event(self._fields, self._head, self._choices):
            yield event

    def _echoed(self, index: int) -> dict[str, Any]:
        """The event that tells of a prompt."""
        choice = self._choices[index]
        text = self._echo(choice)
        self._shown[index] = len(text)
        return self._event([self._choice(index, text, self._judged(choice))])

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = endpoint.usage_so_far(self._fields, self._choices)
        return {**self._head, "choices": choices, **usage}

    def _echo(self, choice: Choice) -> str:
        return self._model.tokenizer.decode(choice.prompt.ids) if self._fields.echo else ""

    def _choice(
        self, index: int, text: str, scores: dict[str, Any] | None, finish: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": scores, "finish_reason": finish}

    def _logprobs(self, tokens: list[Token], offset: int) -> dict[str, Any] | None:
        return self._scored([(token.text, token) for token in tokens], offset)

    def _judged(self, choice: Choice, tokens: Sequence[Token] = ()) -> dict[str, Any] | None:
        """The scores of a prompt, and of tokens behind it."""
        if self._fields.logprobs is None:
            return None
        texts = logprobs.spelled(self._model.tokenizer, choice.prompt.ids)
        judged = zip(texts, [None, *choice.scores], strict=True)
        return self._scored([*judged, *((token.text, token) for token in tokens)], 0)

    def _scored(
        self, tokens: Sequence[tuple[str, Token | None]], offset: int
    ) -> dict[str, Any] | None:
        if self._fields.logprobs is None:
            return None
        return logprobs.of_completion(self._model.tokenizer, tokens, offset)
