"""The schedule against a device whose answers follow from what its pages hold."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.fair_queue import FairQueue, QueueFull
from serve.engine.operations import Release, SetPages, Step
from tests.serve.fake import Client, Loop, make, pieces, submit


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
        "count": st.sampled_from([40, 20, 20, 5, 1]),
        "tenant": st.sampled_from(["", "ann", "bob"]),
        "adapter": st.integers(0, 1),
        "kind": st.sampled_from(["free", "free", "grammar", "judged", "scored", "stop", "short"]),
        "at": st.integers(0, 9),  # turns before it comes
        "stay": st.sampled_from([None, None, None, None, 0, 2, 9]),  # turns before it goes
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
    st.lists(WISHES, min_size=6, max_size=14),
    st.fixed_dictionaries(
        {
            "slots": st.sampled_from([6, 3, 1]),
            "pages": st.integers(20, 28),  # the longest takes 20
            "chunk": st.sampled_from([16, 32]),
            "step_tokens": st.integers(1, 4),
            "share": st.sampled_from([True, True, False]),
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
        assert 0 <= client.request.accepted <= client.request.drafted
        judged = wish["kind"] in ("judged", "scored")
        assert scores == (wish["tokens"][1:] if judged else [])


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
