"""The schedule against a device whose answers follow from what its pages hold."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.fair_queue import FairQueue, QueueFull
from serve.engine.operations import CopyPage, Piece, Prefill, Release, ScoreChunk, SetPages, Step
from serve.engine.scheduler import Scheduler
from serve.engine.turn import Limits
from tests.serve.fake import Client, Fake, Loop

PAGE = 4


def make(**how: Any) -> tuple[Scheduler, Fake, Loop]:
    usual = {"slots": 2, "pages": 64, "page": PAGE, "chunk": 16, "step_tokens": 3, "queue": 100}
    limits = Limits(**usual | how)
    schedule, device = Scheduler(limits), Fake(limits)
    return schedule, device, Loop(schedule, device)


def submit(schedule: Scheduler, *clients: Client) -> None:
    for client in clients:
        schedule.submit(client.request)


def pieces(device: Fake) -> list[Piece]:
    return [one for op in device.log if isinstance(op, Prefill) for one in op.pieces]


class Grammar:
    """It allows everything, but knows so only when it is asked again."""

    def __init__(self, length: int = 99) -> None:
        self.seen: list[int] = []
        self._length, self._asked = length, 0

    def mask(self, patience: float = 0.0) -> bytes:
        self._asked += 1
        return b"\1\0\0\0" if self._asked % 2 == 0 else b""

    def accept(self, token: int) -> None:
        self.seen.append(token)

    @property
    def finish(self) -> str:
        return "stop" if len(self.seen) >= self._length else ""


WISHES = st.fixed_dictionaries(
    {
        "tokens": st.lists(st.integers(0, 1), min_size=1, max_size=40),
        "count": st.integers(1, 30),
        "tenant": st.sampled_from(["", "ann", "bob"]),
        "adapter": st.integers(0, 1),
        "kind": st.sampled_from(["free", "free", "grammar", "judged", "scored", "stop", "short"]),
        "at": st.integers(0, 40),  # turns before it comes
        "stay": st.sampled_from([None, None, 0, 1, 2, 5, 9]),  # turns before it goes
    }
)


def client_of(wish: dict[str, Any]) -> Client:
    tenant, adapter, kind = wish["tenant"], wish["adapter"], wish["kind"]
    how: dict[str, Any] = {"tenant": tenant, "adapter": adapter, "seed": len(wish["tokens"])}
    how["prefix_scope"] = f"{tenant}/{adapter}"
    if kind in ("grammar", "short"):
        how["constraint"] = Grammar(2 if kind == "short" else 99)
    if kind in ("judged", "scored"):
        how |= {"judged": True, "logprobs": 1}
    if kind == "stop":
        how["ends"] = (7, 11, 13, 17, 19, 23)
    return Client(wish["tokens"], 0 if kind == "scored" else wish["count"], **how)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(WISHES, max_size=14),
    st.fixed_dictionaries(
        {
            "slots": st.integers(1, 6),
            "pages": st.integers(18, 40),  # the longest takes 18
            "chunk": st.sampled_from([16, 32]),
            "step_tokens": st.integers(1, 4),
            "share": st.booleans(),
            "draft_tokens": st.sampled_from([0, 0, 2]),
        }
    ),
    st.booleans(),
)
def test_everybody_gets_the_answer_they_would_get_alone(
    wishes: list[Any], limits: dict[str, Any], ahead: bool
) -> None:
    """With pages so few that answers give theirs up, and no page lost after any turn."""
    schedule, device, _ = make(**limits)
    loop = Loop(schedule, device, ahead)
    clients = [client_of(wish) for wish in wishes]
    for turn in range(60):
        for client, wish in zip(clients, wishes, strict=True):
            if wish["at"] == turn:
                schedule.submit(client.request)
            if wish["stay"] is not None and wish["at"] + wish["stay"] == turn:
                schedule.cancel(client.request)
        loop.turn()
    loop.run()
    assert (schedule.occupied, schedule.busy) == (0, False)
    assert schedule.tables.pages.available == limits["pages"]
    for client, wish in zip(clients, wishes, strict=True):
        expected = client.wanted[:2] if wish["kind"] == "short" else client.wanted
        if client.finish == "cancelled":
            assert wish["stay"] is not None
            assert client.tokens == expected[: len(client.tokens)]
            continue
        assert client.tokens == expected, wish
        stopped = wish["kind"] == "short" and len(expected) == 2
        stopped = stopped or (bool(expected) and expected[-1] in client.request.settings.ends)
        assert client.finish == ("stop" if stopped else "length")
        scores = [token for update in client.updates if update.of_prompt for token in update.tokens]
        judged = wish["kind"] in ("judged", "scored")
        assert scores == (wish["tokens"][1:] if judged else [])


# --- prompts -----------------------------------------------------------------------------------
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
    submit(schedule, *(Client([n, n], 5) for n in range(6)))
    assert [len(op.pieces) for op in schedule.next().operations if isinstance(op, Prefill)] == [4]
    assert [len(op.pieces) for op in schedule.next().operations if isinstance(op, Prefill)] == [2]


def test_long_prompts_take_turns_with_others() -> None:
    schedule, device, loop = make(slots=4)
    long, short = Client([1] * 64, tenant="long"), Client([2] * 16, tenant="short")
    submit(schedule, long)
    loop.turn()
    submit(schedule, short)
    loop.run()
    slots = [piece.slot for piece in pieces(device)]
    assert slots.index(1) == 2


def test_tenants_take_turns() -> None:
    schedule, device, loop = make(slots=1)
    submit(schedule, *(Client([n], 1, tenant="many") for n in range(5)))
    submit(schedule, Client([50], 1, tenant="one"))
    loop.run()
    assert [sum(piece.tokens) for piece in pieces(device)] == [0, 50, 1, 2, 3, 4]


def test_a_full_queue_refuses() -> None:
    schedule, _, _ = make(queue=2)
    submit(schedule, Client([1]), Client([2], tenant="other"))
    with pytest.raises(QueueFull, match="2 requests wait"):
        submit(schedule, Client([3]))


def test_what_can_never_fit_is_refused() -> None:
    schedule, _, loop = make(pages=4)
    fits = Client([1] * 10, 7)  # the newest token is in no page
    submit(schedule, fits)
    with pytest.raises(ValueError, match=r"have 17 tokens, the cache holds 16; .*--cache-memory"):
        submit(schedule, Client([1] * 10, 8))
    loop.run()
    assert fits.tokens == fits.wanted


def test_the_queue_forgets_nobody() -> None:
    queue: FairQueue[Any] = FairQueue(10)
    for name in "aab":
        queue.put(name, name)
    assert [queue.remove(name, name) for name in "bbc"] == [True, False, False]
    queue.put_first("a", "first")
    assert [queue.take(), queue.take(), queue.take(), len(queue)] == ["first", "a", "a", 0]


# --- cancelling --------------------------------------------------------------------------------
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
def test_cancelling_frees_slot_and_pages_at_once(turns: int) -> None:
    """In the queue, in the middle of a prompt, in the middle of an answer."""
    schedule, device, loop = make(slots=1)
    gone, after = Client([1] * 40, 50), Client([3], 4)
    submit(schedule, gone)
    loop.run(turns)
    schedule.cancel(gone.request)
    schedule.check()
    assert (schedule.occupied, schedule.tables.pages.available) == (0, 64)
    assert gone.finish == "cancelled"
    schedule.cancel(gone.request)
    submit(schedule, after)
    heard = len(gone.updates)
    loop.run()
    assert after.tokens == after.wanted
    assert len(gone.updates) == heard
    releases = [op for op in device.log if isinstance(op, Release)]
    assert len(releases) == (turns > 0)


def test_a_failure_ends_what_is_in_slots_and_keeps_the_queue() -> None:
    schedule, device, loop = make(slots=1)
    lost, kept = Client([1], 50), Client([2], 3)
    submit(schedule, lost, kept)
    loop.run(3)
    schedule.fail()
    device.reset()
    assert lost.finish == "error"
    Loop(schedule, device).run()
    assert kept.tokens == kept.wanted


# --- pages -------------------------------------------------------------------------------------
SYSTEM = [5, 6, 7, 8, 9, 1, 2, 3]  # two pages


@pytest.mark.parametrize(
    ("tokens", "scope", "share", "found"),
    [
        ([*SYSTEM, 4], "a", True, 8),
        (SYSTEM, "a", True, 4),  # something is left to compute
        ([*SYSTEM[:6], 4, 4, 4], "a", True, 4),
        ([4, *SYSTEM], "a", True, 0),
        ([*SYSTEM, 4], "b", True, 0),  # another tenant or adapter, or octave of dynamic NTK
        ([*SYSTEM, 4], "a", False, 0),
    ],
)
@pytest.mark.parametrize("going", [False, True])
def test_what_may_be_shared(
    tokens: list[int], scope: str, share: bool, found: int, going: bool
) -> None:
    """With one whose answer is whole, and with one whose answer goes on."""
    schedule, _, loop = make(share=share)
    submit(schedule, Client([*SYSTEM, 1], 30, prefix_scope="a"))
    loop.run(4 if going else 100)
    other = Client(tokens, 2, prefix_scope=scope)
    submit(schedule, other)
    loop.run()
    assert other.request.shared == schedule.shared_tokens == found
    assert other.tokens == other.wanted


def test_the_next_turn_of_a_conversation_finds_the_last_answer() -> None:
    """Whole pages as they are, the page that grows as a copy."""
    schedule, device, loop = make(page=32, pages=8)
    first = Client(list(range(30)), 20)
    submit(schedule, first)
    loop.run()
    second = Client([*range(30), *first.tokens, 1, 2], 5)
    submit(schedule, second)
    loop.run()
    assert second.request.shared == 49  # the newest token was in no page
    assert len([op for op in device.log if isinstance(op, CopyPage)]) == 1
    assert second.tokens == second.wanted


def test_those_who_come_at_once_compute_a_beginning_once() -> None:
    schedule, device, loop = make(slots=4, chunk=16)
    clients = [Client([*range(64), n], 3) for n in range(4)]
    submit(schedule, *clients)
    loop.run()
    assert sum(len(piece.tokens) for piece in pieces(device)) < 64 + 2 * 16
    assert [client.tokens for client in clients] == [client.wanted for client in clients]


def test_pages_that_rest_longest_go_first() -> None:
    schedule, _, loop = make(slots=1, pages=8)
    for tokens in ([*SYSTEM, 1], [*SYSTEM[::-1], 1], [*SYSTEM, 2], [0] * 20):
        submit(schedule, Client(tokens, 4))
        loop.run()
    kept, gone = Client([*SYSTEM, 3], 2), Client([*SYSTEM[::-1], 3], 2)
    for client in (kept, gone):
        submit(schedule, client)
        loop.run()
    assert (kept.request.shared, gone.request.shared) == (8, 0)


def test_the_youngest_of_whom_holds_most_gives_way() -> None:
    """And comes back before those of its tenant that have not begun."""
    schedule, _, loop = make(slots=4, pages=12, share=False)
    names = "ann ann ann bob".split()
    clients = [Client([n] * 8, 9, tenant=name) for n, name in enumerate(names)]
    waits = Client([9] * 8, 9, tenant="ann")
    submit(schedule, *clients, waits)
    loop.run()
    assert schedule.preemptions > 0
    assert [client.request.preempted for client in clients] == [False, False, True, False]
    ended = sorted([*clients, waits], key=lambda client: client.ended)
    assert ended[-1] is waits
    assert all(client.tokens == client.wanted for client in clients)


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


def test_a_turn_is_an_update() -> None:
    """64 answers under way: a turn touches them once, and says only what changes."""
    schedule, device, loop = make(slots=64, pages=5000, chunk=1024, page=16)
    submit(schedule, *(Client([n], 500) for n in range(64)))
    loop.run(5)
    began, turns = len(device.log), 40
    loop.run(turns)
    sizes = Counter(type(op) for op in device.log[began:])
    assert sizes[Step] == turns
    assert sizes[SetPages] <= 64 * (turns * 3 // 16 + 1)
    assert set(sizes) == {Step, SetPages}
