"""The programs of an answer, begun while the weights it needs are still being read."""

import warnings
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import DTypeLike

from qwen_jax.decoding import aot, decode, prompts, window
from qwen_jax.decoding import drafts as drafts_
from qwen_jax.decoding.completion import MAX_NEW_TOKENS, defaults_of, per_call
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.nn.model import Qwen


def prepare(
    shapes: Qwen,
    prompt: Sequence[int],
    max_new_tokens: int | None = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
) -> None:
    """Begin to make, or to read, what `stream_completions` will call first for one prompt.

    shapes: the parameters as ShapeDtypeStructs with shardings. Returns at once. Raises ValueError
    as that does for a wrong number of tokens, before anything long has begun.
    """
    defaults = defaults_of(shapes)
    if max_new_tokens is None:
        max_new_tokens = defaults.new_tokens(len(prompt), MAX_NEW_TOKENS)
    with warnings.catch_warnings(action="ignore"):  # who answers will say it
        budget = window.budget(shapes.config, len(prompt), max_new_tokens)
    devices: set[jax.Device] = shapes.embed.sharding.device_set
    cache_dtype = defaults.cache_dtype if cache_dtype is None else cache_dtype
    if cache_dtype is None and {device.platform for device in devices} == {"cpu"}:
        cache_dtype = np.float32  # as decode.start has it
    length = decode.cache_length(len(prompt), budget)
    chunk, count = min(len(prompt), prompts.CHUNK), per_call(budget, watch=True)
    drafts = drafts_.wanted(flatten(shapes), 1, draft_tokens)
    aot.prepare(shapes, 1, length, cache_dtype, prompt=chunk, count=count, draft_tokens=drafts)
