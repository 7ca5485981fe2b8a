"""Log probabilities in OpenAI's two forms."""

from collections.abc import Sequence
from typing import Any

from qwen_jax.text.tokenizer import Tokenizer
from serve.text.answer import Token

_LEAST = -9999.0  # JSON has no infinity


def of_chat(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    """The form of chat completions."""

    def entry(id: int, logprob: float) -> dict[str, Any]:
        content = tokenizer.token_bytes(id)
        return {
            "token": _text(tokenizer, id),
            "logprob": max(logprob, _LEAST),
            "bytes": list(content),
        }

    content = [
        {
            **entry(token.id, token.logprob),
            "top_logprobs": [entry(*one) for one in token.best],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def of_completion(
    tokenizer: Tokenizer, tokens: Sequence[Token | None], ids: Sequence[int], offset: int
) -> dict[str, Any]:
    """The form of completions: lists side by side. None, at a prompt's first token: no score.

    offset: where in the whole text the first token begins.
    """
    names, scores, best, offsets = [], [], [], []
    for id, token in zip(ids, tokens, strict=True):
        names.append(_text(tokenizer, id))
        offsets.append(offset)
        offset += len(names[-1])
        scores.append(None if token is None else max(token.logprob, _LEAST))
        best.append(None if token is None else _best(tokenizer, token))
    return {
        "tokens": names,
        "token_logprobs": scores,
        "top_logprobs": best,
        "text_offset": offsets,
    }


def _best(tokenizer: Tokenizer, token: Token) -> dict[str, float]:
    """By text; where two tokens read alike, the likelier one."""
    found: dict[str, float] = {}
    for id, logprob in [*token.best, (token.id, token.logprob)]:
        found.setdefault(_text(tokenizer, id), max(logprob, _LEAST))
    return found


def _text(tokenizer: Tokenizer, id: int) -> str:
    """A token's text; part of a character is shown as bytes, as OpenAI does."""
    content = tokenizer.token_bytes(id)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
