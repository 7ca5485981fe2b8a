"""The schedule against a device that only counts."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.fair_queue import FairQueue, QueueFull
from serve.engine.slot_operations import CopyPrefix, Prefill, Release, ScoreChunk, Step
from serve.engine.slot_scheduler import Scheduler
from tests.serve.fake import Client, Fake, drive

CHUNK = 4


def make(
    slots: int = 2, queue: int = 100, steps: int = 3, share: bool = True
) -> tuple[Scheduler, Fake]:
    return Scheduler(slots, CHUNK, queue, steps, share), Fake(slots, CHUNK)


def submit(schedule: Scheduler, *clients: Client) -> None:
    for client in clients:
        schedule.submit(client.request)


def chunks(device: Fake, slot: int | None = None) -> list[Prefill]:
    return [op for op in device.log if isinstance(op, Prefill) and slot in (None, op.slot)]


class Alternating:
    """A grammar: it allows everything, and wants to see each token before the next."""

    def __init__(self, length: int = 99) -> None:
        self.seen: list[int] = []
        self._asked, self._length = 0, length

    def mask(self, patience: Any = 0.0) -> bytes:
        assert self._asked == len(self.seen), "its last token is still unknown"
        self._asked += 1
        return b"\1\0\0\0"

    def accept(self, token: int) -> None:
        self.seen.append(token)

    @property
    def finish(self) -> str:
        return "stop" if len(self.seen) >= self._length else ""


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 1), min_size=1, max_size=14),
            st.integers(1, 9),
            st.sampled_from(["", "ann", "bob"]),
            st.sampled_from(["free", "grammar", "judged", "stop", "short"]),
        ),
        max_size=12,
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_everybody_gets_the_right_answer(
    wanted: list[Any], slots: int, steps: int, share: bool, ahead: bool
) -> None:
    schedule, device = make(slots, steps=steps, share=share)
    clients = []
    for tokens, count, tenant, kind in wanted:
        how: dict[str, Any] = {"tenant": tenant, "prefix_scope": tenant}
        if kind == "grammar":
            how["constraint"] = Alternating()
        if kind == "judged":
            how |= {"judged": True, "logprobs": 1}
        if kind == "stop":
            how["ends"] = (sum(tokens) + 2,)
        if kind == "short":
            how["constraint"] = Alternating(2)
        clients.append(Client(tokens, count, **how))
    submit(schedule, *clients)
    drive(schedule, device, ahead=ahead)
    assert schedule.occupied == 0
    assert not any(slot.remaining for slot in device.state)
    for client, (tokens, count, _, kind) in zip(clients, wanted, strict=True):
        expected = client.wanted[:2] if kind == "short" else client.wanted
        assert client.tokens == expected, kind
        early = len(expected) < count or (kind == "short" and count == 2)
        if kind == "stop":
            early = early or expected[-1] in client.request.settings
        assert client.finish == ("stop" if early else "length")
        scores = [token for update in client.updates if update.of_prompt for token in update.tokens]
        assert scores == (tokens[1:] if kind == "judged" else [])
        if kind in ("grammar", "short"):
            constraint: Any = client.request.constraint
            assert constraint.seen == expected


def test_a_long_prompt_does_not_stall_others() -> None:
    schedule, device = make(slots=2)
    quick, long = Client([1], 30), Client([1] * 41, 2)
    submit(schedule, quick)
    drive(schedule, device, turns=2)
    submit(schedule, long)
    begun = len(device.log)
    drive(schedule, device)
    kinds = [type(op) for op in device.log[begun:] if isinstance(op, Prefill | Step)]
    first, last = kinds.index(Prefill), len(kinds) - kinds[::-1].index(Prefill)
    between = kinds[first:last]
    assert between == [Prefill, Step] * 10 + [Prefill]  # one chunk, one token, and so on
    steps = [op.count for op in device.log[begun:] if isinstance(op, Step)]
    assert set(steps[:10]) == {1}
    assert steps[-1] == 3


def test_two_long_prompts_take_turns() -> None:
    schedule, device = make(slots=2)
    submit(schedule, Client([1] * 12), Client([2] * 12))
    drive(schedule, device)
    assert [op.slot for op in chunks(device)] == [0, 1, 0, 1, 0, 1]


def test_short_prompts_share_a_turn() -> None:
    schedule = Scheduler(8, 64, 100, 3, True)
    submit(schedule, *(Client([n], 5) for n in range(6)))
    turn = schedule.next()
    assert [type(op) for op in turn.operations] == [Prefill] * 4 + [Step]  # 16 tokens at least each


def test_slots_are_taken_in_turn_by_tenants() -> None:
    schedule, device = make(slots=1)
    many = [Client([n], 1, tenant="many") for n in range(5)]
    one = Client([50], 1, tenant="one")
    submit(schedule, *many, one)
    drive(schedule, device)
    order = [sum(op.tokens) for op in chunks(device)]
    assert order == [0, 50, 1, 2, 3, 4]


def test_a_full_queue_refuses() -> None:
    schedule, _ = make(queue=2)
    submit(schedule, Client([1]), Client([2], tenant="other"))
    with pytest.raises(QueueFull, match="2 requests wait"):
        submit(schedule, Client([3]))


def test_the_queue_forgets_nobody() -> None:
    queue: FairQueue[Any] = FairQueue(10)
    for name in "aab":
        queue.put(name, name)
    assert [queue.remove(name, name) for name in "bbc"] == [True, False, False]
    assert [queue.take(), queue.take(), len(queue)] == ["a", "a", 0]


# --- cancelling --------------------------------------------------------------------------------
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
def test_cancelling_frees_the_slot_at_once(turns: int) -> None:
    """In the queue, in the middle of a prompt, in the middle of an answer."""
    schedule, device = make(slots=1)
    gone, next_one = Client([1] * 9, 50), Client([3], 4)
    submit(schedule, gone)
    drive(schedule, device, turns)
    schedule.cancel(gone.request)
    assert schedule.occupied == 0
    assert gone.finish == "cancelled"
    schedule.cancel(gone.request)
    submit(schedule, next_one)
    heard = len(gone.updates)
    drive(schedule, device)
    assert next_one.tokens == next_one.wanted
    assert len(gone.updates) == heard
    if turns:
        releases = [n for n, op in enumerate(device.log) if isinstance(op, Release)]
        assert releases[0] < device.log.index(chunks(device)[-1])


def test_a_thousand_cancelled_requests_leave_nothing() -> None:
    schedule, device = make(slots=3)
    for n in range(1000):
        client = Client([n % 7] * (1 + n % 11), 1 + n % 13, tenant=str(n % 3))
        submit(schedule, client)
        if n % 2:
            drive(schedule, device, turns=n % 4)
        schedule.cancel(client.request)
    drive(schedule, device)
    assert (schedule.occupied, len(schedule.queue), schedule.busy) == (0, 0, False)


def test_a_failure_ends_what_is_in_slots_and_keeps_the_queue() -> None:
    schedule, device = make(slots=1)
    lost, kept = Client([1], 50), Client([2], 3)
    submit(schedule, lost, kept)
    drive(schedule, device, turns=3)
    schedule.fail()
    device.reset()
    assert lost.finish == "error"
    drive(schedule, device)
    assert kept.tokens == kept.wanted


# --- prefixes ----------------------------------------------------------------------------------
SYSTEM = [5, 6, 7, 8, 9, 1, 2, 3]  # two chunks


def test_a_shared_beginning_is_computed_once() -> None:
    schedule, device = make(slots=2)
    first, second = Client([*SYSTEM, 1], 3), Client([*SYSTEM, 2, 3], 3)
    submit(schedule, first)
    drive(schedule, device)
    submit(schedule, second)
    drive(schedule, device)
    assert second.tokens == second.wanted
    assert [op for op in device.log if isinstance(op, CopyPrefix)] == [CopyPrefix(0, 0, SYSTEM)]
    assert len(chunks(device)) == 3 + 1
    assert schedule.shared_tokens == second.request.shared == 8


def test_a_busy_slot_can_be_copied_from() -> None:
    schedule, device = make(slots=2)
    submit(schedule, Client([*SYSTEM, 1], 50))
    drive(schedule, device, turns=5)
    second = Client([*SYSTEM, 2], 2)
    submit(schedule, second)
    drive(schedule, device)
    assert [(op.source, op.slot) for op in device.log if isinstance(op, CopyPrefix)] == [(0, 1)]
    assert second.tokens == second.wanted


@pytest.mark.parametrize(
    ("tokens", "prefix_scope", "share", "found"),
    [
        ([*SYSTEM, 4], "a", True, 8),
        (SYSTEM, "a", True, 4),  # something is left to compute
        ([*SYSTEM[:6], 4, 4, 4], "a", True, 4),
        ([4, *SYSTEM], "a", True, 0),
        ([*SYSTEM, 4], "b", True, 0),  # another tenant, or another octave of dynamic NTK
        ([*SYSTEM, 4], "a", False, 0),
    ],
)
def test_what_may_be_shared(tokens: list[int], prefix_scope: str, share: bool, found: int) -> None:
    schedule, device = make(slots=1, share=share)
    submit(schedule, Client([*SYSTEM, 1], 2, prefix_scope="a"))
    drive(schedule, device)
    other = Client(tokens, 2, prefix_scope=prefix_scope)
    submit(schedule, other)
    drive(schedule, device)
    assert other.request.shared == found
    assert other.tokens == other.wanted


def test_empty_slots_go_first() -> None:
    """A slot that holds a beginning is kept while there are others."""
    schedule, device = make(slots=3)
    for n in range(3):
        submit(schedule, Client([*SYSTEM, 1] if n == 0 else [n], 2))
        drive(schedule, device)
    assert [op.slot for op in chunks(device)] == [0, 0, 0, 1, 2]
    again = Client([*SYSTEM, 7], 2)
    submit(schedule, again)
    drive(schedule, device)
    assert again.request.shared == 8


def test_scoring_computes_every_chunk() -> None:
    schedule, device = make(slots=1)
    for _ in range(2):
        client = Client([*SYSTEM, 1], 1, judged=True, logprobs=0)
        submit(schedule, client)
        drive(schedule, device)
    judged = [op for op in device.log if isinstance(op, ScoreChunk)]
    assert [op.start for op in judged] == [0, 4] * 2
    assert not [op for op in device.log if isinstance(op, CopyPrefix)]


def test_scoring_alone_generates_nothing() -> None:
    schedule, device = make(slots=1)
    client = Client([*SYSTEM, 1], 0, judged=True, logprobs=1)
    submit(schedule, client)
    drive(schedule, device)
    assert client.tokens == []
    assert client.finish == "length"
    assert not chunks(device)
    assert client.updates[0].best == [[(token, -0.5)] for token in SYSTEM[1:5]]
    assert schedule.occupied == 0
