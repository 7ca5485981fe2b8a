"""Answers to many prompts: slots that take the next prompt as soon as they are free."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import jax

from qwen_jax.decoding import decode
from qwen_jax.decoding.completion import Completion, Row, read_prompts, tokenizer_of
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.prompts import CHUNK, tile_of
from qwen_jax.decoding.sampling import Sampling, stop_sequences
from qwen_jax.nn.model import Qwen

SLOTS = 16
_PER_CALL = 8  # tokens, after which free slots are filled again
_CHUNK = {"cpu": 256}  # tokens of prompts in a call: more of them are no faster, but compile more


@dataclass(frozen=True)
class Asked:
    """A prompt and how it is answered. ends: sequences of ids that end the answer."""

    ids: Sequence[int]
    sampling: Sampling
    ends: tuple[tuple[int, ...], ...]
    max_new_tokens: int


def answers(
    params: Qwen, prompts: Sequence[Asked], slots: int = SLOTS
) -> Iterator[tuple[int, Completion]]:
    """(number of the prompt, its whole answer), in the order in which they end.

    An answer is the same whatever stands in the other slots.
    """
    if not prompts:
        return
    weights, longest = flatten(params), max(len(one.ids) for one in prompts)
    needs = (decode.cache_length(len(one.ids), one.max_new_tokens) for one in prompts)
    state = decode.start(weights, slots, max(needs))
    read = functools.partial(  # whatever is free when: few programs, none of which computes nothing
        read_prompts,
        tile=tile_of(weights.platform, longest),
        chunk=_CHUNK.get(weights.platform, CHUNK),
        full=True,
        count=slots,
    )
    waiting = iter(enumerate(prompts))
    under_way: dict[int, tuple[int, Row]] = {}
    while True:
        free = [slot for slot in range(slots) if slot not in under_way]
        if begun := dict(zip(free, islice(waiting, len(free)), strict=False)):
            rows = {slot: _row(params, one) for slot, (_, one) in begun.items()}
            settings = [SamplingArrays.of(one.sampling, one.ends, 0) for _, one in begun.values()]
            state = read(weights, state, rows, settings)
            under_way |= {slot: (index, rows[slot]) for slot, (index, _) in begun.items()}
        elif under_way:
            state, output = decode.step(weights, state, _PER_CALL)
            output = jax.device_get(output)
            for slot, (_, row) in under_way.items():
                row.push(output, slot)
        else:
            return
        for slot, (index, row) in list(under_way.items()):
            if row.answer.finish_reason:
                state = decode.release(weights, state, slot)
                del under_way[slot]
                yield index, row.answer


def _row(params: Qwen, one: Asked) -> Row:
    ends = stop_sequences(one.sampling, one.ends)
    return Row(one.ids, one.sampling, ends, tokenizer_of(params), one.max_new_tokens)
