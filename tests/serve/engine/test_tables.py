"""Which pages texts share, and who gives them up."""

import pytest

from serve.engine.operations import CopyPage
from tests.serve.fake import Client, make, pieces, submit

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
