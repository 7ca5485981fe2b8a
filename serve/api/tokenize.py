"""Tokens of a text and back, as vLLM and lm-eval ask for them."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwen_jax.text.tokenizer import TextStream, Tokenizer
from serve.api import endpoint, prompting
from serve.api.prompting import Tools
from serve.http.errors import ApiError
from serve.http.rendering import Text
from serve.schemas.requests import DetokenizeRequest, TokenizeRequest
from serve.service import Model

_AT_ONCE = 1024  # ids that are decoded by one call


async def tokenize(request: Request) -> Response:
    """Ids of a text, in which control tokens count, or of a conversation."""
    fields = await endpoint.read(request, TokenizeRequest)
    model = endpoint.model(request.app.state.service, fields.model)

    def answer() -> dict[str, Any]:
        ids = _ids(model, fields)  # a tenth of a list, however long the answer takes
        made: dict[str, Any] = {"count": len(ids), "max_model_len": model.length}
        made["tokens"] = iter(ids)
        if fields.return_token_strs:
            made["token_strs"] = (model.tokenizer.decode([id]) for id in ids)
        return made

    return await _rendered(request, answer)


async def _rendered(request: Request, answer: Callable[[], dict[str, Any]]) -> Response:
    made = await endpoint.work(request, answer)  # a fault of it is an answer of its own
    return endpoint.rendered(request, request.state.size, lambda: made)


def _ids(model: Model, fields: TokenizeRequest) -> "array[int]":
    if fields.prompt is not None:
        try:
            return model.tokenizer.prompt_array(fields.prompt)
        except ValueError as error:
            raise ApiError(400, str(error), "prompt") from None
    assert fields.messages is not None
    messages = [message.said() for message in fields.messages]
    described = [tool.shown() for tool in fields.tools or ()]
    tools = Tools([tool["function"] for tool in described], described=described)
    try:
        asked = prompting.chat(model, messages, tools, fields.thinking, ending=fields.ending)
    except ValueError as error:
        raise ApiError(400, str(error), "messages") from None
    return array("I", asked.ids)


async def detokenize(request: Request) -> Response:
    """The text of ids."""
    fields = await endpoint.read(request, DetokenizeRequest)
    model = endpoint.model(request.app.state.service, fields.model)

    def answer() -> dict[str, Any]:
        try:
            model.tokenizer.token_bytes(max(fields.tokens, default=0))
        except ValueError as error:
            raise ApiError(400, str(error), "tokens") from None
        return {"prompt": Text(_decoded(model.tokenizer, fields.tokens))}

    return await _rendered(request, answer)


def _decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    """Their text, in parts."""
    stream = TextStream(tokenizer, skip_specials=False)
    for start in range(0, len(ids), _AT_ONCE):
        yield stream.push(ids[start : start + _AT_ONCE])
    yield stream.flush()


async def tokenizer_info(request: Request) -> Response:
    """What lm-eval asks before it sends ids."""
    model = endpoint.model(request.app.state.service, None)
    tokenizer = model.tokenizer
    end = tokenizer.decode([tokenizer.end_of_text])
    return JSONResponse(
        {
            "tokenizer_class": "qwen_jax.Tokenizer",
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": model.length,
            "bos_token": None,
            "eos_token": end,
            "pad_token": end,
            "chat_template": tokenizer.chat_template,
        }
    )
