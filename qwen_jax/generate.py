"""Generate from prompts and chat: text or ids in, text or ids out."""

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, overload

import numpy as np
from jax import Array

from qwen_jax.decoding import decode
from qwen_jax.decoding.completion import (
    Completion,
    complete,
    defaults_of,
    stream_completions,
    tokenizer_of,
)
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.nn.model import Qwen
from qwen_jax.text import chatml
from qwen_jax.text.tokenizer import Tokenizer

Turns = list[tuple[str, str]]  # (query, reply), oldest first


@overload
def generate(params: Qwen, prompt: str, sampling: Sampling | None = None, **how: Any) -> str: ...
@overload
def generate(
    params: Qwen, prompt: Sequence[str], sampling: Sampling | None = None, **how: Any
) -> list[str]: ...
@overload
def generate(
    params: Qwen, prompt: Sequence[int], sampling: Sampling | None = None, **how: Any
) -> list[int]: ...
@overload
def generate(
    params: Qwen, prompt: Sequence[Sequence[int]], sampling: Sampling | None = None, **how: Any
) -> list[list[int]]: ...
def generate(params: Qwen, prompt: Any, sampling: Sampling | None = None, **how: Any) -> Any:
    """Continue a prompt, or several at once: text in, new text out; ids in, new ids out.

    prompt: a str, a list of ids, or a list of either. In text, control tokens like <|im_start|>
        count; for a user's words use `chat`, where they do not.
    sampling: all of how tokens are chosen; default, what the checkpoint's generation_config.json
        says. A list gives every prompt its own.
    max_new_tokens: default, the checkpoint's, or 512.
    stop: a text, or several, that end the answer and are cut from it, beside sampling.stop.
    seed: of the random numbers; the same seed gives the same answer, whatever else is in the
        batch. A list gives every prompt its own; default, a fresh one for each.
    Ends a row at the ids the checkpoint stops at; they are part of the ids that come back.
    """
    _refuse_logprobs(sampling)
    prompts, single = _prompts(params, prompt)
    answers = complete(params, prompts, sampling, **how)
    is_text = isinstance(prompt, str) or isinstance(prompt[0], str)
    out: list[Any] = [answer.text if is_text else answer.tokens for answer in answers]
    return out[0] if single else out


def stream(
    params: Qwen, prompt: Any, sampling: Sampling | None = None, **how: Any
) -> Iterator[Any]:
    """`generate` for one prompt, as it comes: pieces of text, or lists of ids. Same keywords."""
    _refuse_logprobs(sampling)
    prompts, single = _prompts(params, prompt)
    if not single:
        raise ValueError(f"stream takes one prompt, got a list of {len(prompts)}; use generate")
    shown = 0
    for (answer,) in stream_completions(params, prompts, sampling, watch=True, **how):
        grown = answer.text if isinstance(prompt, str) else answer.tokens
        if len(grown) > shown:
            yield grown[shown:]
        shown = len(grown)


def chat(
    params: Qwen,
    query: str,
    history: Iterable[tuple[str, str]] | None = None,
    system: str | None = None,
    sampling: Sampling | None = None,
    **how: Any,
) -> tuple[str, Turns]:
    """Answer a user: the reply, and the history to pass in next time.

    history: earlier (query, reply) turns; what does not fit a v1 checkpoint's window is left out
        of the prompt, oldest first, and stays in the history.
    system: default, "You are a helpful assistant." for v1, the chat template's own for the rest.
    Keywords as for `generate`, and `enable_thinking` where the chat template has it. Control
    tokens in query, history and system are text.
    """
    _refuse_logprobs(sampling)
    history = list(history or [])
    *_, answer = stream_chat(params, query, history, system, sampling, **how)
    reply = answer.text.strip()
    return reply, [*history, (query, reply)]


def stream_chat(
    params: Qwen,
    query: str,
    history: Iterable[tuple[str, str]] = (),
    system: str | None = None,
    sampling: Sampling | None = None,
    **how: Any,
) -> Iterator[Completion]:
    """The answer of `chat` as it grows: one Completion, again and again."""
    asked = {name: how.pop(name) for name in chatml.TEMPLATE_ARGUMENTS if name in how}
    ids, stops = chat_prompt(params, query, history, system, **asked)
    for (answer,) in stream_completions(params, [ids], sampling, watch=True, eos_ids=stops, **how):
        yield answer


def chat_prompt(
    params: Qwen,
    query: str,
    history: Iterable[tuple[str, str]] = (),
    system: str | None = None,
    **template_arguments: Any,
) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """The ids that ask for an answer to `query`, and the sequences of ids that end the answer."""
    tokenizer, defaults = text_tokenizer(params), defaults_of(params)
    if defaults.chat_format == "raw":
        raise ValueError(
            "this is a base model (its chat_format is raw), it continues text and answers nobody; "
            "use generate, or a Chat checkpoint"
        )
    if tokenizer.chat_template is None and defaults.chat_format is None:
        raise ValueError("this checkpoint has no chat template and no chat_format; use generate")
    messages = [{"role": "system", "content": system}] if system is not None else []
    for question, answer in history:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": query})
    if tokenizer.chat_template is None:
        template_arguments["max_window_size"] = defaults.max_window_size
    ids = chatml.render(tokenizer, messages, **template_arguments)
    stops = ((id,) for id in chatml.stop_ids(tokenizer))
    return ids, tuple(dict.fromkeys((*defaults.eos_ids, *stops)))


def logits(params: Qwen, ids: Any) -> Array:
    """Scores of every next token: ids [B T], or one text [T] -> float32 [B T V]."""
    rows, _ = _prompts(params, ids)
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"texts of {sorted({len(r) for r in rows})} ids; give texts of one length")
    return decode.score(params, np.asarray(rows, np.int32))


def _prompts(params: Qwen, prompt: Any) -> tuple[list[list[int]], bool]:
    """Prompts as ids, and whether there was one, not a list of them."""
    prompt = [prompt] if (is_text := isinstance(prompt, str)) else _listed(prompt)
    kinds = {str if isinstance(part, str) else np.ndim(part) for part in prompt}
    if kinds not in ({str}, {0}, {1}):
        got = "a mixture" if kinds else "nothing"
        raise ValueError(f"got {got}, wanted a text, a list of ids, or a list of either")
    if kinds == {str}:
        tokenizer = text_tokenizer(params)
        rows = [tokenizer.encode(text, specials=True) for text in prompt]
    else:
        rows = [prompt] if kinds == {0} else [_listed(row) for row in prompt]
    for row in rows:
        _check_ids(row, params)
    return rows, is_text or kinds == {0}


def _listed(array: Any) -> list[Any]:
    """A sequence, or an array of NumPy or JAX, as a list of Python's own numbers."""
    return array.tolist() if hasattr(array, "tolist") else list(array)


def _check_ids(ids: Sequence[int], params: Qwen) -> None:
    if not ids:
        raise ValueError("got an empty prompt, wanted at least one token")
    for id in ids:
        if isinstance(id, bool) or not isinstance(id, Integral):
            raise ValueError(f"got {id!r} among the ids of a prompt, wanted whole numbers")
    if min(ids) < 0 or max(ids) >= params.config.vocab:
        raise ValueError(
            f"got ids from {min(ids)} to {max(ids)}, wanted 0 to {params.config.vocab - 1}"
        )


def _refuse_logprobs(sampling: Any) -> None:
    samplings = sampling if isinstance(sampling, Sequence) else [sampling]
    if any(
        isinstance(sampling, Sampling) and sampling.logprobs is not None for sampling in samplings
    ):
        raise ValueError(
            "text and ids carry no logprobs; see qwen_jax.decoding.completion.complete"
        )


def text_tokenizer(params: Qwen) -> Tokenizer:
    """The tokenizer of a checkpoint that has to read text."""
    tokenizer = tokenizer_of(params)
    if tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer; give the prompt as a list of ids")
    return tokenizer
