"""/generate, /generate_stream and /info: text-generation-inference, in words of completions."""

from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwen_jax.decoding.sampling import MAX_STOPS
from serve.api import completions, endpoint, logprobs, sse
from serve.api.choices import Choice
from serve.http.errors import ApiError
from serve.schemas.generate import GenerateRequest, StreamRequest
from serve.schemas.requests import CompletionRequest
from serve.service import Model, Service
from serve.text.answer import Token

Event = dict[str, Any]


async def generate(request: Request) -> Response:
    """Continue a text; event by event where the body asks for that."""
    return await endpoint.answered(request, GenerateRequest, _prepared, Reply)


async def generate_stream(request: Request) -> Response:
    """The same, event by event whatever the body says."""
    return await endpoint.answered(request, StreamRequest, _prepared, Reply)


async def info(request: Request) -> Response:
    """What is served, and how much of it."""
    service: Service = request.app.state.service
    model = endpoint.model(service, None)
    return JSONResponse(
        {
            "model_id": model.name,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": service.settings.slots + service.settings.queue,
            "max_best_of": 1,
            "max_stop_sequences": MAX_STOPS,
            "max_input_tokens": model.length - 1,
            "max_total_tokens": model.length,
            "router": "qwen_jax",
            "version": version("qwen_jax"),
        }
    )


def _prepared(model: Model, tenant: str, fields: GenerateRequest, most: int) -> list[Choice]:
    prompt: Any = fields.inputs
    if fields.parameters.truncate is not None:
        prompt = model.tokenizer.encode(prompt, specials=True)[-fields.parameters.truncate :]
    body = fields.completion() | {"prompt": prompt}
    return completions.prepared(model, tenant, CompletionRequest.model_validate(body), most)


class Reply(sse.Reply):
    """One continuation in the form of text-generation-inference."""

    end: str = ""

    def __init__(self, model: Model, fields: GenerateRequest, choices: list[Choice]):
        (self._choice,) = choices
        self._model, self._parameters, self._before = model, fields.parameters, fields.inputs
        if not fields.parameters.return_full_text:
            self._before = ""

    async def whole(self, working: sse.Working) -> Callable[[], dict[str, Any]]:
        """What makes one object with everything; that may take long."""
        texts, tokens = list[str](), list[Token]()
        async for _, part in working:
            texts.append(part.message.content)
            tokens += part.tokens

        def made() -> dict[str, Any]:
            told: dict[str, Any] = {"generated_text": self._before + "".join(texts)}
            if self._parameters.details:
                told["details"] = {
                    **self._why(),
                    "prefill": self._prefill(),
                    "tokens": [self._token(token) for token in tokens],
                }
                if self._parameters.top_n_tokens:
                    told["details"]["top_tokens"] = [self._best(token) for token in tokens]
            return told

        return made

    async def events(self, working: sse.Working) -> AsyncIterator[Event]:
        """One for each token; the last has the whole text."""
        texts, held, count = list[str](), list[Token](), 0
        async for _, part in working:
            texts.append(part.message.content)
            held += part.tokens
            while len(held) > 1:
                count += 1
                yield self._event(count, held.pop(0))
        last = held[0] if held else Token(self._choice.prompt.ends[0][-1], 0.0, [])
        text = self._before + "".join(texts)
        length = len(self._choice.prompt.ids)
        yield self._event(count + 1, last) | {
            "generated_text": text,
            "details": {**self._why(), "input_length": length},
        }

    def fault(self, error: ApiError) -> Event:
        return error.form("/generate")

    def _event(self, index: int, token: Token) -> Event:
        best = {"top_tokens": self._best(token)} if self._parameters.top_n_tokens else {}
        told = {"index": index, "token": self._token(token), **best}
        return told | {"generated_text": None, "details": None}

    def _token(self, token: Token) -> dict[str, Any]:
        special = token.id in self._model.tokenizer.hidden
        return {
            "id": token.id,
            "text": token.text,
            "logprob": max(token.logprob, logprobs.LEAST),
            "special": special,
        }

    def _best(self, token: Token) -> list[dict[str, Any]]:
        decode: Callable[[Sequence[int]], str] = self._model.tokenizer.decode
        return [self._token(Token(id, score, [], decode([id]))) for id, score in token.best]

    def _prefill(self) -> list[dict[str, Any]]:
        if not self._parameters.decoder_input_details:
            return []
        ids = self._choice.prompt.ids
        texts = logprobs.spelled(self._model.tokenizer, ids)
        scores = [None, *(max(one.logprob, logprobs.LEAST) for one in self._choice.scores)]
        return [
            {"id": id, "text": text, "logprob": score}
            for id, text, score in zip(ids, texts, scores, strict=True)
        ]

    def _why(self) -> dict[str, Any]:
        finish, answer = self._choice.finish, self._choice.answer
        reason = {"stop": "stop_sequence" if answer.stop else "eos_token"}.get(finish, finish)
        return {
            "finish_reason": reason,
            "generated_tokens": answer.count,
            "seed": self._parameters.seed,
        }
