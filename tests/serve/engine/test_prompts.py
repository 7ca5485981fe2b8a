"""Pieces of prompts between the steps of answers."""

from serve.engine.operations import Prefill, ScoreChunk, Step
from tests.serve.fake import Client, make, pieces, submit

SYSTEM = [5, 6, 7, 8, 9, 1, 2, 3]


def test_a_long_prompt_holds_a_step_up_by_a_chunk() -> None:
    schedule, device, loop = make(pages=90)
    quick, long = Client([1], 60), Client([1] * 161, 2)
    submit(schedule, quick)
    loop.run(3)
    submit(schedule, long)
    begun = len(device.log)
    loop.run()
    kinds = [type(op) for op in device.log[begun:] if isinstance(op, Prefill | Step)]
    first, last = kinds.index(Prefill), len(kinds) - kinds[::-1].index(Prefill)
    assert kinds[first:last] == [Prefill, Step] * 10 + [Prefill]  # a chunk, a token, and so on
    steps = [op.count for op in device.log[begun:] if isinstance(op, Step)]
    assert set(steps[:10]) == {1}
    assert steps[-1] == 3
    assert long.tokens == long.wanted


def test_short_prompts_share_a_call() -> None:
    schedule, _, _ = make(slots=8, chunk=64)
    submit(schedule, *(Client([n, n], 5) for n in range(7)))
    assert [len(op.pieces) for op in schedule.next().operations if isinstance(op, Prefill)] == [4]
    assert [len(op.pieces) for op in schedule.next().operations if isinstance(op, Prefill)] == [3]


def test_a_chunk_is_two_small_calls_where_one_large_is_mostly_empty() -> None:
    for length, calls in ((65, [64, 1]), (128, [64, 64]), (129, [129]), (256, [256])):
        schedule, _, _ = make(pages=90, chunk=256)
        submit(schedule, Client([1] * length, 2))
        prefills = [op for op in schedule.next().operations if isinstance(op, Prefill)]
        assert [sum(len(piece.tokens) for piece in op.pieces) for op in prefills] == calls


def test_long_prompts_take_turns_with_others() -> None:
    schedule, device, loop = make(slots=4)
    long, short = Client([1] * 64, tenant="long"), Client([2] * 16, tenant="short")
    submit(schedule, long)
    loop.turn()
    submit(schedule, short)
    loop.run()
    slots = [piece.slot for piece in pieces(device)]
    assert slots.index(1) == 2


def test_scoring_computes_every_token() -> None:
    schedule, device, loop = make(slots=1)
    for _ in range(2):
        client = Client([*SYSTEM, *SYSTEM, 1, 1], 1, judged=True, logprobs=0)
        submit(schedule, client)
        loop.run()
        assert client.tokens == client.wanted
    judged = [op for op in device.log if isinstance(op, ScoreChunk)]
    assert [op.start for op in judged] == [0, 16] * 2
    assert [len(piece.tokens) for piece in pieces(device)] == [1, 1]


def test_scoring_alone_generates_nothing() -> None:
    schedule, device, loop = make(slots=1)
    client = Client([*SYSTEM, 1], 0, judged=True, logprobs=1)
    submit(schedule, client)
    loop.run()
    assert (client.tokens, client.finish, pieces(device)) == ([], "length", [])
    assert client.updates[0].best == [[(token, -0.5)] for token in [*SYSTEM[1:], 1]]
    assert schedule.occupied == 0
