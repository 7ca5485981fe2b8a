"""The schedule against a device whose answers follow from what its pages hold."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.scheduler import Scheduler
from serve.engine.turn import Limits
from tests.serve.engine.paged_fake import Client, Fake, Loop

PAGE = 4


def make(**how: Any) -> tuple[Scheduler, Fake, Loop]:
    usual = {"slots": 2, "pages": 64, "page": PAGE, "chunk": 16, "step_tokens": 3, "queue": 100}
    limits = Limits(**usual | how)
    schedule, device = Scheduler(limits), Fake(limits)
    return schedule, device, Loop(schedule, device)


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
