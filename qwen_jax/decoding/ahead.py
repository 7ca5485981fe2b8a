"""The programs of an answer, begun while the weights it needs are still being read."""

import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from jax.typing import DTypeLike

from qwen_jax.decoding import aot, decode, generation_config, prompts
from qwen_jax.decoding import drafts as drafts_
from qwen_jax.decoding.completion import MAX_NEW_TOKENS, defaults_of, per_call
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.decoding.pieces import rows_of
from qwen_jax.nn.model import Qwen


def prepare(
    shapes: Qwen,
    prompt: Sequence[int],
    max_new_tokens: int | None = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> list[Future[Any]]:
    """Begin to make, or to read, what `stream_completions` will call first for one prompt.

    shapes: the parameters as ShapeDtypeStructs with shardings. Returns at once what is
    done when they are. Raises ValueError as that does for a wrong number of tokens, before
    anything long has begun.
    """
    budget = _budget(shapes, len(prompt), max_new_tokens)
    if cache_dtype is None:
        cache_dtype = defaults_of(shapes).cache_dtype
    length = decode.cache_length(len(prompt), budget)
    chunk, count = min(len(prompt), prompts.CHUNK), per_call(budget, watch=True)
    drafts = drafts_.wanted(flatten(shapes), 1, draft_tokens)
    how: dict[str, Any] = {
        "prompt": chunk,
        "count": count,
        "draft_tokens": drafts,
        "attention": attention,
    }
    return aot.prepare(shapes, 1, length, cache_dtype, **how)


def sizes(shapes: Qwen, longest: int, max_new_tokens: int | None = None) -> list[int]:
    """Lengths of prompts, one for each set of programs that prompts of up to `longest` need."""
    device: Any = next(iter(shapes.embed.sharding.device_set))
    found: dict[Any, int] = {}
    for size in range(1, longest + 1):
        budget = _budget(shapes, size, max_new_tokens)
        tile = prompts.tile_of(device.platform, size)
        rows = decode.power(rows_of(min(size, prompts.CHUNK), tile))
        length, count = decode.cache_length(size, budget), per_call(budget, watch=True)
        found.setdefault((tile, rows, length, count), size)
    return list(found.values())


def _budget(shapes: Qwen, prompt: int, max_new_tokens: int | None) -> int:
    if max_new_tokens is None:
        max_new_tokens = defaults_of(shapes).new_tokens(prompt, MAX_NEW_TOKENS)
    with warnings.catch_warnings(action="ignore"):  # who answers will say it
        return generation_config.budget(shapes.config, prompt, max_new_tokens)
