"""The device side: everything is compiled beforehand, and runs as the schedule asks."""

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax import stages

from qwen_jax.decoding import decode, executables, prompts
from qwen_jax.decoding.completion import complete
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.nn.attention import PAGE
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.rope import octave
from serve.engine.compilations import Compilations
from serve.engine.model_runner import ModelRunner
from serve.engine.operations import CopyPage, Piece, Prefill, Release, ScoreChunk, SetPages, Step
from serve.engine.request import Request
from serve.engine.scheduler import Scheduler
from serve.engine.turn import Limits
from tests.qwen_jax.memorised_model import with_defaults
from tests.qwen_jax.networks import cache_sizes

SLOTS, LENGTH, CHUNK = 6, 256, 64
WISH = SamplingArrays.of(Sampling(temperature=0.5, logprobs=3, stop_ids=((1, 2),)), ((3,),), 9)
MASK = b"\xff" * 52


@pytest.fixture(scope="module")
def warm(babbler: Qwen) -> ModelRunner:
    runner = ModelRunner(
        babbler, SLOTS, LENGTH, pages=14, chunk=CHUNK, step_tokens=4, draft_tokens=4
    )
    runner.warm()
    return runner


def compiled() -> list[int]:
    programs = (prompts._prefill, decode._step, prompts._score_chunk)
    small = (decode._start, decode._release, decode._copy_page, prompts._recall)
    return cache_sizes(*programs, *small)


def piece(
    slot: int, length: int, start: int, mask: bytes | None = None, last: bool = True
) -> Piece:
    before = [5] * start
    return Piece(slot, [5] * length, start, start + length, WISH, 0, mask, 0, last, before)


@pytest.mark.parametrize("first", ["prefill", "judge", "step", "masked", "share", "release"])
def test_whatever_comes_first_is_compiled(warm: ModelRunner, first: str) -> None:
    """And whatever comes then: pieces of every size at every place, any company, with masks."""
    before = compiled()
    warm.reset()
    operations: dict[str, Any] = {
        "prefill": Prefill([piece(0, 64, 0)]),
        "judge": ScoreChunk(0, [1], [2], 0, 64),
        "step": Step([0], 4),
        "masked": Step([0, 3], 1, {0: MASK}),
        "share": CopyPage(0, 1),
        "release": Release(5),
    }
    warm.run([operations.pop(first), SetPages(0, 0, [3, 4]), *operations.values()])
    for start, length, mask in itertools.product((0, 1, 100), (1, 16, 17, 64), (None, MASK)):
        warm.run([Prefill([piece(3, length, start, mask)])])
    warm.run([Prefill([piece(slot, 3 + slot, 0) for slot in range(4)])])
    for count, rows in itertools.product((1, 2, 4), range(1, SLOTS + 1)):
        warm.run([Step(list(range(rows)), count)])
    warm.run([ScoreChunk(1, [1] * 16, [2] * 16, 100, LENGTH)])
    assert compiled() == before


def test_programs_that_are_kept_are_made_and_not_run(
    babbler: Qwen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages hold what they held, every operation finds its programs, and the next start as well."""
    monkeypatch.setenv(executables.FOLDER, str(tmp_path / "programs"))
    told: list[tuple[int, int]] = []
    ran: list[object] = []
    for _ in range(2):
        runner = ModelRunner(babbler, 2, PAGE, pages=2, chunk=16, step_tokens=1)
        with monkeypatch.context() as patch:
            patch.setattr(stages.Compiled, "__call__", lambda *_, **__: ran.append(1))
            runner.warm(lambda done, count: told.append((done, count)))
        assert not ran
        made = set((tmp_path / "programs").iterdir())
        compilations = Compilations()
        runner.read((every := list(runner.programs())), runner.run(every))
        assert compilations.count == 0
        assert set((tmp_path / "programs").iterdir()) == made
    assert told[-1][1] == told[-1][0] + 1


def test_few_programs(warm: ModelRunner) -> None:
    """Two sizes of prefills, 1, 2, 4 and 8 answers in a step, four small ones; at any length."""
    assert len(list(warm.programs())) == 10


def run(runner: ModelRunner, requests: list[Request], **how: Any) -> Scheduler:
    usual = {"slots": SLOTS, "pages": 14, "page": runner.page, "chunk": CHUNK, "step_tokens": 4}
    usual |= {"queue": 99, "draft_tokens": runner.draft_tokens}
    schedule = Scheduler(Limits(**usual | how))
    for request in requests:
        schedule.submit(request)
    while schedule.busy:
        turn = schedule.next()
        schedule.take(turn, runner.read(turn.operations, runner.run(turn.operations)))
    return schedule


TEXTS = [[7, 8, 9], list(range(30, 110)), [50] * 64, [*range(30, 105), 7, 7, 7]]
SAMPLINGS = [
    Sampling(temperature=0.8),
    Sampling(temperature=0),
    Sampling(temperature=1.2, repetition_penalty=1.3),
    Sampling(temperature=1.0, presence_penalty=0.4, top_p=0.9),
]


def wish(number: int, count: int = 12) -> Request:
    settings = SamplingArrays.of(SAMPLINGS[number % 4], (), number)
    return Request(TEXTS[number % 4], settings, count, lambda update: None)


def test_answers_are_those_of_generate(warm: ModelRunner, babbler: Qwen) -> None:
    """Through the schedule, in pieces, beside others, beginnings shared."""
    endless = with_defaults(babbler, eos_ids=())
    requests = [wish(number) for number in range(4)]
    run(warm, requests)
    for number, request in enumerate(requests):
        (alone,) = complete(
            endless, [TEXTS[number]], SAMPLINGS[number], max_new_tokens=12, seed=number
        )
        assert request.answer == alone.tokens


def test_a_crowd_that_runs_out_of_pages(warm: ModelRunner) -> None:
    """Answers that give their pages up and come back are what they are alone, to the token."""
    alone = []
    for number in range(12):
        request = wish(number, 60 + number)
        warm.reset()
        run(warm, [request])
        alone.append(request.answer)
    warm.reset()
    requests = [wish(number, 60 + number) for number in range(12)]
    random.Random(0).shuffle(requests)
    schedule = run(warm, requests, pages=7)
    assert schedule.preemptions > 0
    assert schedule.drafts[2] > 0
    assert sorted(request.answer for request in requests) == sorted(alone)


def test_lineage_is_the_octave(warm: ModelRunner) -> None:
    runner = object.__new__(ModelRunner)
    for trained in (None, 32, 512):
        runner.config = replace(warm.config, ntk_length=trained)
        lengths: Any = np.asarray([1, 31, 32, 33, 64, 65, 511, 512, 513, 1024, 1025, 5000])
        wanted = octave(runner.config, lengths).tolist()
        assert [runner.prefix_scope(int(length)) for length in lengths] == wanted
