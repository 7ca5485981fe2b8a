"""Answers while they grow: the host's loop around the jitted decode functions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from qwen_jax.decoding import decode, generation_config
from qwen_jax.decoding import drafts as drafts_
from qwen_jax.decoding.flat_params import Weights, flatten
from qwen_jax.decoding.generation_config import Defaults
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.per_prompt import each, seeds_of
from qwen_jax.decoding.pieces import Piece, share
from qwen_jax.decoding.prompts import CHUNK, prefill, tile_of
from qwen_jax.decoding.sampling import Sampling, finish_reason, stop_sequences
from qwen_jax.decoding.state import Output, State
from qwen_jax.nn.model import Qwen
from qwen_jax.program import progress
from qwen_jax.program.limits import CACHE_DTYPES
from qwen_jax.text.tokenizer import StopStrings, TextStream, Tokenizer

Samplings = Sampling | Sequence[Sampling] | None  # for all prompts, or one each
Seeds = int | Sequence[int] | None

MAX_NEW_TOKENS = 512  # where neither the caller nor generation_config.json says, as the original
_PER_LOOK = 16  # tokens between two looks of the host, when it streams or watches for stop strings
_PER_CALL = 256  # most tokens of one call at any rate, so that Ctrl-C is heard


@dataclass
class Completion:
    """The answer to one prompt."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""  # without control tokens and stop strings; empty without a tokenizer
    finish_reason: str = ""  # "stop" or "length"; empty while it grows
    logprobs: list[float] = field(default_factory=list)  # one a token, if sampling.logprobs asks
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    drafted: int = 0  # tokens that were looked up and verified
    accepted: int = 0  # of them, those that came


def complete(
    params: Qwen,
    prompts: Sequence[Sequence[int]],
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> list[Completion]:
    """`generate` for prompts of ids, with all there is to know about every answer."""
    *_, found = answers(
        params,
        prompts,
        sampling,
        **_how(max_new_tokens, stop, seed, cache_dtype, draft_tokens, attention),
    )
    return found


def stream_completions(
    params: Qwen,
    prompts: Sequence[Sequence[int]],
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
) -> Iterator[list[Completion]]:
    """`complete` as the answers grow: all of them, again and again, at the end whole."""
    return answers(
        params,
        prompts,
        sampling,
        **_how(max_new_tokens, stop, seed, cache_dtype, draft_tokens, attention),
        watch=True,
    )


def _how(*values: Any) -> dict[str, Any]:
    """Keywords of `answers`, in its order."""
    names = ("max_new_tokens", "stop", "seed", "cache_dtype", "draft_tokens", "attention")
    return dict(zip(names, values, strict=True))


def answers(
    params: Qwen,
    prompts: Sequence[Sequence[int]],
    sampling: Samplings,
    *,
    max_new_tokens: int | None,
    stop: str | Sequence[str],
    seed: Seeds,
    cache_dtype: DTypeLike | None,
    draft_tokens: int | None = None,
    attention: str | None = None,
    eos_ids: tuple[tuple[int, ...], ...] | None = None,
    watch: bool = False,
) -> Iterator[list[Completion]]:
    """What is behind all of them; keywords as for `generate`.

    eos_ids: sequences of ids that end an answer, default the checkpoint's. watch: look at the
    device every few tokens, not only when all answers are done.
    """
    weights, defaults = flatten(params), defaults_of(params)
    drafts = drafts_.wanted(weights, len(prompts), draft_tokens)
    if max_new_tokens is None:
        max_new_tokens = defaults.new_tokens(max(map(len, prompts)), MAX_NEW_TOKENS)
    cache_dtype = defaults.cache_dtype if cache_dtype is None else cache_dtype
    budget = generation_config.budget(params.config, max(map(len, prompts)), max_new_tokens)
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    sampling = defaults.sampling if sampling is None else sampling
    samplings = each(sampling, Sampling, len(prompts), "sampling")
    samplings = [replace(sampling, stop=(*sampling.stop, *stop)) for sampling in samplings]
    seeds = seeds_of(seed, len(prompts))
    ends = defaults.eos_ids if eos_ids is None else eos_ids
    _check_bias(params, samplings)
    _check_cache(cache_dtype)
    settings = [
        SamplingArrays.of(sampling, ends, one)
        for sampling, one in zip(samplings, seeds, strict=True)
    ]
    rows = [
        Row(ids, sampling, stop_sequences(sampling, ends), tokenizer_of(params), budget)
        for ids, sampling in zip(prompts, samplings, strict=True)
    ]
    length = decode.cache_length(max(map(len, prompts)), budget)
    state = decode.start(weights, len(prompts), length, cache_dtype, None, attention, drafts)
    state = read_prompts(weights, state, dict(enumerate(rows)), settings)
    watch = watch or any(row.sampling.stop for row in rows)
    count = per_call(budget, watch)
    while True:
        yield [row.answer for row in rows]
        if all(row.answer.finish_reason for row in rows):
            return
        state, output = decode.step(weights, state, count)
        output = jax.device_get(output)
        for slot, row in enumerate(rows):
            row.push(output, slot)


def per_call(budget: int, watch: bool) -> int:
    """Tokens of a step: one of few sizes, so few compilations."""
    return min(1 << (budget - 1).bit_length(), _PER_LOOK if watch else _PER_CALL)


def read_prompts(
    weights: Weights,
    state: State,
    rows: Mapping[int, "Row"],
    settings: Sequence[SamplingArrays],
    *,
    tile: int | None = None,
    chunk: int = CHUNK,
    full: bool = False,
    count: int | None = None,
) -> State:
    """Prefill the prompts of rows in these slots, as many at once as a call takes.

    tile, count: see `prefill`. chunk: most tokens of a call. full: see `share`.
    """
    slots, texts = list(rows), [row.prompt for row in rows.values()]
    if tile is None:
        tile = tile_of(weights.platform, max(map(len, texts)))
    for call in share(list(map(len, texts)), tile, max(1, chunk // tile), full):
        pieces = [
            Piece(
                slots[number],
                texts[number][start:end],
                start,
                len(texts[number]),
                settings[number],
                rows[slots[number]].budget,
                last=end == len(texts[number]),
            )
            for number, start, end in call
        ]
        state, output = prefill(weights, state, pieces, tile=tile, count=count)
        output = jax.device_get(output)
        progress.advance(sum(len(piece.tokens) for piece in pieces))
        for at, piece in enumerate(pieces):
            if piece.last:
                rows[piece.slot].push(output, at)
    return state


class Row:
    """One answer while it grows."""

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        ends: Sequence[Sequence[int]],
        tokenizer: Tokenizer | None,
        budget: int,
    ):
        if sampling.stop and tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer for stop strings; use stop_ids")
        self.prompt, self.sampling, self.ends, self.budget = prompt, sampling, ends, budget
        self.answer = Completion()
        self._text = TextStream(tokenizer) if tokenizer else None
        self._stops = StopStrings(sampling.stop)

    def push(self, output: Output, slot: int) -> None:
        """Take in what a call gave this slot."""
        answer = self.answer
        if answer.finish_reason:
            return
        said: list[str] = []  # put together once: an answer may be long
        if output.drafts is not None:
            answer.drafted += int(output.drafts[slot, 1])
            answer.accepted += int(output.drafts[slot, 2])
        for index, token in enumerate(output.tokens[slot]):
            if token < 0 or answer.finish_reason:
                break
            self._take(output, slot, index, said)
        if not answer.finish_reason and not output.active[slot]:
            answer.finish_reason = finish_reason(self.prompt, answer.tokens, self.budget, self.ends)
            if self._text is not None:
                said += [self._read(self._text.flush()), self._stops.flush()]
        answer.text += "".join(said)

    def _take(self, output: Output, slot: int, index: int, said: list[str]) -> None:
        """One more token, and the text that it adds."""
        answer, token = self.answer, int(output.tokens[slot, index])
        answer.tokens.append(token)
        if self.sampling.logprobs is not None:
            answer.logprobs.append(float(output.logprobs[slot, index]))
            ids, values = output.top_tokens[slot, index], output.top_logprobs[slot, index]
            top = zip(ids[: self.sampling.logprobs], values, strict=False)
            answer.top_logprobs.append({int(id): float(value) for id, value in top})
        if self._text is not None:
            said.append(self._read(self._text.push([token])))
            if self._stops.stopped:  # the device does not know, and goes on until all are done
                answer.finish_reason = "stop"

    def _read(self, text: str) -> str:
        """What of it may be shown; stop strings count after min_tokens."""
        early = len(self.answer.tokens) <= self.sampling.min_tokens
        return text if early else self._stops.push(text)[0]


def defaults_of(params: Qwen) -> Defaults:
    return Defaults() if params.assets is None else params.assets.defaults


def tokenizer_of(params: Qwen) -> Tokenizer | None:
    return None if params.assets is None else params.assets.tokenizer


def text_tokenizer(params: Qwen) -> Tokenizer:
    """The tokenizer of a checkpoint that has to read text."""
    tokenizer = tokenizer_of(params)
    if tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer; give the prompt as a list of ids")
    return tokenizer


def refuse_logprobs(sampling: Samplings) -> None:
    """Of functions whose result has no place for them."""
    samplings = sampling if isinstance(sampling, Sequence) else [sampling]
    if any(isinstance(one, Sampling) and one.logprobs is not None for one in samplings):
        raise ValueError("text and ids carry no logprobs; see qwen_jax.decoding.completion")


def _check_cache(dtype: DTypeLike | None) -> None:
    try:
        known = dtype is None or np.dtype(dtype).name in CACHE_DTYPES
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"got cache_dtype {dtype!r}, wanted one of {', '.join(CACHE_DTYPES)}")


def _check_bias(params: Qwen, samplings: Iterable[Sampling]) -> None:
    for sampling in samplings:
        if outside := [id for id in sampling.logit_bias if id >= params.config.vocab]:
            raise ValueError(f"logit_bias has ids {outside}, this model has {params.config.vocab}")
