"""Log probabilities in OpenAI's two forms."""

from collections.abc import Iterator, Sequence
from typing import Any

from qwen_jax.text.tokenizer import TextStream, Tokenizer
from serve.text.answer import Token

LEAST = -9999.0  # JSON has no infinity


def of_chat(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    """The form of chat completions; the bytes of all entries are those of the text."""

    def entry(id: int, logprob: float, spelled: bytes) -> dict[str, Any]:
        name = tokenizer.token_bytes(id) if id in tokenizer.hidden else spelled
        return {
            "token": _readable(name),
            "logprob": max(logprob, LEAST),
            "bytes": list(spelled),
        }

    def alternative(token: Token, id: int, logprob: float) -> dict[str, Any]:
        spelled = b"" if id in tokenizer.hidden else tokenizer.token_bytes(id)
        return entry(id, logprob, token.spelled if id == token.id else spelled)

    content = [
        {
            **entry(token.id, token.logprob, token.spelled),
            "top_logprobs": [alternative(token, *one) for one in token.best],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def of_completion(
    tokenizer: Tokenizer, tokens: Sequence[tuple[str, Token | None]], offset: int
) -> dict[str, Any]:
    """The form of completions: lists side by side, of the text each token adds and its score.

    None, at a prompt's first token: no score. offset: where in the whole text the first begins.
    """
    offsets = []
    for text, _ in tokens:
        offsets.append(offset)
        offset += len(text)
    scored = [token for _, token in tokens]
    return {
        "tokens": [text for text, _ in tokens],
        "token_logprobs": [token and max(token.logprob, LEAST) for token in scored],
        "top_logprobs": [token and _best(tokenizer, text, token) for text, token in tokens],
        "text_offset": offsets,
    }


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    """The text that each id adds; control tokens are their names. All are the text of all."""
    stream = TextStream(tokenizer, skip_specials=False)
    for place, id in enumerate(ids):
        text = stream.push([id])
        yield text if place < len(ids) - 1 else text + stream.flush()


def _best(tokenizer: Tokenizer, text: str, token: Token) -> dict[str, float]:
    """The likeliest and the token itself, by text; an id where two read alike."""
    found = {text: max(token.logprob, LEAST)}
    for id, logprob in token.best:
        if id == token.id:
            continue
        name = _readable(tokenizer.token_bytes(id))
        found[name if name and name not in found else f"token_id:{id}"] = max(logprob, LEAST)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _readable(content: bytes) -> str:
    """Part of a character is shown as bytes, as OpenAI does."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
