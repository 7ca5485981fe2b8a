"""Prompts that cannot fit, refused with what to do; if possible before they are tokenised."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from serve.http.errors import ApiError
from serve.service import Model


def check_texts(model: Model, texts: Iterable[str], param: str) -> None:
    """Raises a 400 where texts have more tokens than fit, however they are tokenised."""
    least = sum(map(model.tokenizer.least_tokens, texts))
    if least >= model.length:
        raise too_long(model, f"{least} tokens or more", 1, param)


def check_messages(model: Model, messages: Sequence[Mapping[str, Any]]) -> None:
    """The same of messages that a prompt holds whole: v1 forgets turns, templates thoughts."""
    kept = messages if model.tokenizer.chat_template is not None else messages[-1:]
    said = [m["content"] for m in kept if m["role"] != "assistant" and m.get("content")]
    check_texts(model, said, "messages")


def too_long(model: Model, size: str, wanted: int, param: str) -> ApiError:
    """size: of the prompt. wanted: tokens asked for."""
    most = model.config.max_length
    remedy = (
        f"start the server with more --cache-memory or --max-length (the checkpoint's is {most})"
        if model.length < most
        else "the server's --max-length is all that the checkpoint reads"
    )
    return ApiError(
        400,
        f"the prompt has {size}, {wanted} new ones are asked for, and at most {model.length} fit; "
        f"shorten the prompt, ask for fewer, or {remedy}",
        param,
        "context_length_exceeded",
    )
