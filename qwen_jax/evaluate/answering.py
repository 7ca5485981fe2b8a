"""Answers to many prompts: slots that take the next prompt as soon as they are free."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax

from qwen_jax.decoding import decode
from qwen_jax.decoding.completion import Completion, Row, read_prompts, tokenizer_of
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.sampling import Sampling, stop_sequences
from qwen_jax.nn.model import Qwen

SLOTS = 16
_PER_CALL = 16  # tokens, after which free slots are filled again


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
    weights = flatten(params)
    needs = (decode.cache_length(len(one.ids), one.max_new_tokens) for one in prompts)
    state = decode.start(weights, slots, max(needs))
    waiting = iter(enumerate(prompts))
    under_way: dict[int, tuple[int, Row]] = {}
    while True:
        for slot in range(slots):
            while slot not in under_way and (following := next(waiting, None)) is not None:
                index, one = following
                ends, most = stop_sequences(one.sampling, one.ends), one.max_new_tokens
                row = Row(one.ids, one.sampling, ends, tokenizer_of(params), most)
                settings = SamplingArrays.of(one.sampling, one.ends, seed=0)
                state = read_prompts(weights, state, {slot: row}, [settings])
                if row.answer.finish_reason:
                    yield index, row.answer
                else:
                    under_way[slot] = index, row
        if not under_way:
            return
        state, output = decode.step(weights, state, _PER_CALL)
        output = jax.device_get(output)
        for slot, (index, row) in list(under_way.items()):
            row.push(output, slot)
            if row.answer.finish_reason:
                state = decode.release(weights, state, slot)
                del under_way[slot]
                yield index, row.answer
