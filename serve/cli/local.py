"""A model in this process, as the terminal chat sees it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.typing import DTypeLike

from qwen_jax.conversation import chat_prompt
from qwen_jax.decoding.completion import (
    MAX_NEW_TOKENS,
    answers,
    defaults_of,
    text_tokenizer,
)
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.nn.model import Qwen
from serve.cli.client import Answer
from serve.cli.settings import changed


class Local:
    """What `serve.cli.client.Remote` is for a server."""

    def __init__(
        self,
        params: Qwen,
        name: str,
        cache_dtype: DTypeLike | None = None,
        draft_tokens: int | None = None,
    ):
        chat_prompt(params, "")  # a base model says so before the first question
        self.name, self._params = name, params
        self._cache_dtype, self._draft_tokens = cache_dtype, draft_tokens

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """All settings: the changes, and the checkpoint's own for the rest. ValueError if wrong."""
        sampling, count = self._changed(changes)
        usual = defaults_of(self._params).new_tokens(0, MAX_NEW_TOKENS)
        return {**dataclasses.asdict(sampling), "max_new_tokens": count or usual}

    def answer(
        self,
        query: str,
        history: Sequence[tuple[str, str]],
        system: str | None,
        seed: int,
        changes: Mapping[str, Any],
        begun: str = "",
    ) -> Iterator[Answer]:
        """The answer as it grows, behind what it has begun with."""
        sampling, count = self._changed(changes)
        ids, ends = chat_prompt(self._params, query, history, system)
        growing = answers(
            self._params,
            [[*ids, *text_tokenizer(self._params).encode(begun)]],
            sampling,
            max_new_tokens=count,
            stop=(),
            seed=seed,
            cache_dtype=self._cache_dtype,
            draft_tokens=self._draft_tokens,
            eos_ids=ends,
            watch=True,
        )
        for (grown,) in growing:
            yield Answer(grown.text, len(grown.tokens), grown.finish_reason)

    def _changed(self, changes: Mapping[str, Any]) -> tuple[Sampling, int | None]:
        return changed(defaults_of(self._params).sampling, changes)
