"""Generate from prompts: text or ids in, text or ids out."""

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any, TypeVar, overload

import numpy as np
from jax import Array
from jax.typing import DTypeLike

from qwen_jax.decoding import decode
from qwen_jax.decoding.completion import (
    Samplings,
    Seeds,
    complete,
    refuse_logprobs,
    stream_completions,
    text_tokenizer,
)
from qwen_jax.nn.model import Qwen
from qwen_jax.text.tokenizer import Tokenizer

Part = TypeVar("Part", str, int)


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str
    params: Qwen,
    prompt: str,
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> str: ...
@overload
def generate(
    params: Qwen,
    prompt: Sequence[Part],
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> list[Part]: ...
@overload
def generate(
    params: Qwen,
    prompt: Sequence[Sequence[int]],
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> list[list[int]]: ...
def generate(
    params: Qwen,
    prompt: Any,
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> Any:
    """Continue a prompt, or several at once: text in, new text out; ids in, new ids out.

    prompt: a str, a list of ids, or a list of either. In text, control tokens like <|im_start|>
        count; for a user's words use `chat`, where they do not.
    sampling: all of how tokens are chosen; default, what the checkpoint's generation_config.json
        says. A list gives every prompt its own.
    max_new_tokens: default, the checkpoint's, or 512.
    stop: a text, or several, that end the answer and are cut from it, beside sampling.stop.
    seed: of the random numbers; the same seed gives the same answer, whatever else is in the
        batch. A list gives every prompt its own; default, a fresh one for each.
    cache_dtype: of keys and values, a float type or int8, which halves their memory; default, the
        model's own, but float32 on a CPU.
    draft_tokens: of the answer, looked up in the prompt and the answer so far, that are verified
        at once; they change how fast it comes, not what it says. 0 for none; default, 4 where
        that pays.
    attention: "triton" (NVIDIA), "mosaic" (TPU), "llvm" (CPU) or "xla"; default, the device's own
        where it can run.
    Ends a row at the ids the checkpoint stops at; they are part of the ids that come back.
    """
    refuse_logprobs(sampling)
    prompts, single = prompts_of(params, prompt)
    answers = complete(
        params,
        prompts,
        sampling,
        max_new_tokens=max_new_tokens,
        stop=stop,
        seed=seed,
        cache_dtype=cache_dtype,
        draft_tokens=draft_tokens,
        attention=attention,
    )
    is_text = isinstance(prompt, str) or isinstance(prompt[0], str)
    out: list[Any] = [answer.text if is_text else answer.tokens for answer in answers]
    return out[0] if single else out


@overload
def stream(
    params: Qwen,
    prompt: str,
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> Iterator[str]: ...
@overload
def stream(
    params: Qwen,
    prompt: Sequence[int],
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> Iterator[list[int]]: ...
def stream(
    params: Qwen,
    prompt: Any,
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> Iterator[Any]:
    """`generate` for one prompt, as it comes: pieces of text, or lists of ids. Same keywords."""
    refuse_logprobs(sampling)
    prompts, single = prompts_of(params, prompt)
    if not single:
        raise ValueError(f"stream takes one prompt, got a list of {len(prompts)}; use generate")
    growing = stream_completions(
        params,
        prompts,
        sampling,
        max_new_tokens=max_new_tokens,
        stop=stop,
        seed=seed,
        cache_dtype=cache_dtype,
        draft_tokens=draft_tokens,
        attention=attention,
    )
    shown = 0
    for (answer,) in growing:
        grown = answer.text if isinstance(prompt, str) else answer.tokens
        if len(grown) > shown:
            yield grown[shown:]
        shown = len(grown)


def logits(params: Qwen, ids: Any) -> Array:
    """Scores of every next token: ids [B T], or one text [T] -> float32 [B T V]."""
    rows, _ = prompts_of(params, ids)
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"texts of {sorted({len(r) for r in rows})} ids; give texts of one length")
    return decode.score(params, np.asarray(rows, np.int32))


def prompts_of(
    params: Qwen,
    prompt: Any,
    encode: Callable[[Tokenizer, str], list[int]] = Tokenizer.encode_prompt,
) -> tuple[list[list[int]], bool]:
    """Prompts as ids, and whether there was one, not a list of them."""
    prompt = [prompt] if (is_text := isinstance(prompt, str)) else _listed(prompt)
    kinds = {str if isinstance(part, str) else np.ndim(part) for part in prompt}
    if kinds not in ({str}, {0}, {1}):
        got = "a mixture" if kinds else "nothing"
        raise ValueError(f"got {got}, wanted a text, a list of ids, or a list of either")
    if kinds == {str}:
        tokenizer = text_tokenizer(params)
        rows = [encode(tokenizer, text) for text in prompt]
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
