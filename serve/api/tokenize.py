"""Tokens of a text and back, as vLLM and lm-eval ask for them."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.api import endpoint, prompting
from serve.api.prompting import Tools
from serve.api.schemas import DetokenizeRequest, TokenizeRequest
from serve.http.errors import ApiError, parse
from serve.service import Model


async def tokenize(request: Request) -> Response:
    """Ids of a text, in which control tokens count, or of a conversation."""
    fields = parse(TokenizeRequest, await endpoint.body(request))
    model = endpoint.model(request.app.state.service, fields.model)
    ids = await asyncio.to_thread(_ids, model, fields)
    made: dict[str, Any] = {"count": len(ids), "max_model_len": model.length, "tokens": ids}
    if fields.return_token_strs:
        made["token_strs"] = [model.tokenizer.decode([id]) for id in ids]
    return JSONResponse(made)


def _ids(model: Model, fields: TokenizeRequest) -> list[int]:
    if fields.prompt is not None:
        return model.tokenizer.encode(fields.prompt, specials=True)
    assert fields.messages is not None
    messages = [message.model_dump(exclude_none=True) for message in fields.messages]
    try:
        begun = fields.add_generation_prompt
        return prompting.chat(model, messages, Tools(), add_generation_prompt=begun).ids
    except ValueError as error:
        raise ApiError(400, str(error), "messages") from None


async def detokenize(request: Request) -> Response:
    """The text of ids."""
    fields = parse(DetokenizeRequest, await endpoint.body(request))
    model = endpoint.model(request.app.state.service, fields.model)
    try:
        text = await asyncio.to_thread(model.tokenizer.decode, fields.tokens)
    except ValueError as error:
        raise ApiError(400, str(error), "tokens") from None
    return JSONResponse({"prompt": text})


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
