"""The device side: everything is compiled beforehand, and runs as the schedule asks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qwen_jax.decoding import decode, prefix
from qwen_jax.decoding.completion import complete
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.rope import octave
from serve import loading
from serve.engine.model_runner import ModelRunner
from serve.engine.request import Request
from serve.engine.slot_operations import CopyPrefix, Prefill, Release, ScoreChunk, Step
from serve.engine.slot_scheduler import Scheduler
from tests.qwen_jax.memorised_model import with_defaults
from tests.qwen_jax.networks import cache_sizes
from tests.serve.conftest import SETTINGS

WISH = SamplingArrays.of(Sampling(temperature=0.5, logprobs=3, stop_ids=((1, 2),)), ((3,),), 9)
MASK = b"\xff" * 52


@pytest.fixture(scope="module")
def warm(babbler: Qwen) -> ModelRunner:
    runner = loading.runner(babbler, SETTINGS)
    runner.warm()
    return runner


def compiled() -> list[int]:
    programs = [program.plain for program in (decode._prefill, decode._step, prefix._score_chunk)]
    return cache_sizes(*programs, decode._start, decode._release, prefix._copy_prefix)


def prefill(slot: int, length: int, start: int, mask: bytes | None = None, new: int = 1) -> Prefill:
    return Prefill(slot, [5] * length, start, start + length, WISH, new, mask)


@pytest.mark.parametrize("first", ["prefill", "judge", "step", "masked", "share", "release"])
def test_whatever_comes_first_is_compiled(warm: ModelRunner, first: str) -> None:
    """And whatever comes then: chunks of every size at every place, with masks and without."""
    before = compiled()
    warm.reset()
    operations: dict[str, Any] = {
        "prefill": prefill(0, 64, 0),
        "judge": ScoreChunk(0, [1], [2], 0, 64),
        "step": Step(4),
        "masked": Step(1, {0: MASK}),
        "share": CopyPrefix(0, 1, [1] * 64),
        "release": Release(7),
    }
    warm.run([operations.pop(first), *operations.values(), Step(1), Step(1, {2: b""})])
    for start in range(0, warm.length, warm.chunk):
        for length in (1, 15, 16, 17, 63, 64):
            warm.run([prefill(3, length, start, mask, 0) for mask in (None, MASK)])
        warm.run([ScoreChunk(1, [1] * 3, [2] * 3, start, warm.length)])
        if start:
            warm.run([CopyPrefix(1, 2, [1] * start)])
    assert compiled() == before


@pytest.mark.parametrize("length", [16, 64, 256, 2048])
@pytest.mark.parametrize("chunk", [16, 64, 128])
def test_every_program_is_named(length: int, chunk: int) -> None:
    """Sizes and windows of all chunks that can be, without a device."""
    if length % chunk:
        return
    runner = object.__new__(ModelRunner)
    runner.length, runner.chunk, runner._counts = length, chunk, (1, 4)
    runner._sizes = sorted({max(chunk // 4, 16), chunk})
    window = lambda start, size: min(length, 1 << (start + size - 1).bit_length())
    named = {
        (len(op.tokens), window(op.start, len(op.tokens)))
        for op in runner.programs()
        if isinstance(op, Prefill)
    }
    possible = {
        (size, window(start, size)) for start in range(0, length, chunk) for size in runner._sizes
    }
    assert named == possible
    shared = {
        min(length, decode.bucket(len(op.tokens)))
        for op in runner.programs()
        if isinstance(op, CopyPrefix)
    }
    assert {min(length, decode.bucket(n)) for n in range(chunk, length, chunk)} <= shared


def test_answers_are_those_of_generate(warm: ModelRunner, babbler: Qwen) -> None:
    """Through the schedule, in chunks, beside others, the first with a grammar's mask of all."""
    schedule = Scheduler(warm.slots, warm.chunk, 99, 4, share=True)
    texts = [[7, 8, 9], list(range(30, 110)), [50] * 64]
    samplings = [Sampling(temperature=0.8), Sampling(temperature=0), Sampling(temperature=1.2)]
    requests = [
        Request(
            ids,
            SamplingArrays.of(sampling, (), 5),
            12,
            lambda update: None,
            prefix_scope=str(n % 2),
        )
        for n, (ids, sampling) in enumerate(zip(texts, samplings, strict=True))
    ]
    for request in requests:
        schedule.submit(request)
    while schedule.busy:
        turn = schedule.next()
        schedule.take(turn, warm.read(turn.operations, warm.run(turn.operations)))
    endless = with_defaults(babbler, eos_ids=())
    for request, ids, sampling in zip(requests, texts, samplings, strict=True):
        (alone,) = complete(endless, [ids], sampling, max_new_tokens=12, seed=5)
        assert request.answer == alone.tokens


def test_lineage_is_the_octave(warm: ModelRunner) -> None:
    runner = object.__new__(ModelRunner)
    for trained in (None, 32, 512):
        runner.config = replace(warm.config, ntk_length=trained)
        lengths: Any = np.asarray([1, 31, 32, 33, 64, 65, 511, 512, 513, 1024, 1025, 5000])
        wanted = octave(runner.config, lengths).tolist()
        assert [runner.prefix_scope(int(length)) for length in lengths] == wanted
