"""One tenant's hostile grammars and long texts beside another's ordinary requests."""

import asyncio
import concurrent.futures
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve.engine.fair_queue import QueueFull
from serve.engine.scheduler import Scheduler
from serve.engine.turn import Limits
from serve.http.keys import Keys
from serve.lanes import Lane
from serve.text import grammar, guard
from serve.text.grammar import Constraint
from serve.threads import Threads
from tests.growth import only_linux
from tests.patience import PATIENCE
from tests.serve.conftest import Running, Serve
from tests.serve.fake import Client, Fake, Loop
from tests.serve.raw_http import ASK, CHAT, fault

KEYS = Keys({"a-secret-of-sixteen": "ann", "b-secret-of-sixteen": "bob"})
HOSTILE = {"type": "regex", "pattern": "(a{1000}){1000}"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SMALL = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}


def ask(running: Running, key: Any, **change: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}-secret-of-sixteen"}
    return httpx.post(running.url + CHAT, json=ASK | change, headers=headers, timeout=PATIENCE)


@pytest.fixture(scope="module")
def shared(scripted: Serve) -> Iterator[Running]:
    with scripted('{"n": 1}', keys=KEYS, max_body=4 * 2**20) as running:
        yield running


@pytest.fixture
def hostile(shared: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Twenty of ann's patterns, under way; each would take its two seconds."""
    monkeypatch.setattr(guard, "SECONDS", 0.5)
    patterns = [HOSTILE | {"pattern": f"(a{{{1000 + n}}}){{1000}}"} for n in range(20)]
    for key in "ab":  # whose first grammars start the processes
        assert ask(shared, key, response_format=SMALL).status_code == 200
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, shared, "a", response_format=one) for one in patterns]
        time.sleep(0.3)
        yield asked
        answers = [one.result() for one in asked]
    # those past the sixteen that may wait are told to come again, the others what is wrong
    assert sorted({answer.status_code for answer in answers}) == [400, 429]
    for answer in answers:
        if answer.status_code == 400:
            fault(answer, 400, "response_format cannot be used")
        else:
            fault(answer, 429, "wait for grammars already")


def test_hostile_grammars_delay_no_neighbour(shared: Running, hostile: Any) -> None:
    """Neither his plain requests, nor his grammars, nor those of their own tenant without one."""
    for key, change in itertools.product("ba", ({}, {"response_format": SMALL})):
        if (key, change) != ("a", {"response_format": SMALL}):  # that one waits for its own
            assert ask(shared, key, **change).status_code == 200
    assert not all(one.done() for one in hostile)


def test_long_texts_delay_no_short_ones(shared: Running) -> None:
    headers = {"Authorization": "Bearer a-secret-of-sixteen"}
    text = {"prompt": "the dog " * 500_000}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        post = lambda: httpx.post(
            shared.url + "/tokenize", json=text, headers=headers, timeout=PATIENCE
        )
        long = [pool.submit(post) for _ in range(8)]
        time.sleep(0.3)
        assert ask(shared, "b").status_code == 200
        assert ask(shared, "a").status_code == 200
        assert not all(one.done() for one in long)
        assert {one.result().status_code for one in long} == {200}


# --- the parts ---------------------------------------------------------------------------------
@pytest.mark.anyio
async def test_a_lane_takes_tenants_in_turn() -> None:
    lane, order, first = Lane(Threads("x", 1), 1, 3), [], threading.Event()

    def work(name: str) -> None:
        order.append(name)
        first.wait(PATIENCE)

    asked = [asyncio.ensure_future(lane.run("ann", work, f"ann {n}")) for n in range(3)]
    await asyncio.sleep(0)
    asked.append(asyncio.ensure_future(lane.run("bob", work, "bob")))
    with pytest.raises(QueueFull, match="3 of your requests"):
        await lane.run("ann", work, "too many")
    first.set()
    await asyncio.gather(*asked)
    assert order == ["ann 0", "bob", "ann 1", "ann 2"]
    assert await lane.run("ann", lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await lane.run("ann", lambda: 1 / 0)
    lane.close()


def test_threads_rest_as_long_as_they_must() -> None:
    """A quarter of the time for work is three times as long for others."""

    def work() -> tuple[float, float]:
        began, worked = time.monotonic(), time.thread_time()
        while time.thread_time() < worked + 0.05:
            pass
        return began, time.monotonic()

    for busy, rest in ((1.0, 0.0), (0.25, 0.15)):
        threads = Threads("x", 1, busy)
        (_, ended), (began, _) = [one.result(10) for one in map(threads.submit, [work, work])]
        assert rest <= began - ended
        threads.close()


LARGE = """
import asyncio
import time
from serve.lanes import Lanes
from tests.growth import held

def work():
    bytearray(b"x") * 30_000_000  # freed at once: the C library learns to keep such blocks
    for number in range(100):
        large.append(b"x" * (2_000_000 + number))
        small.append(bytes(600))
    large.clear()

before, large, small = held(), [], []
lanes = Lanes(1, 1)
asyncio.run(lanes.long.run("ann", work))
until = time.monotonic() + 60
while held() > before + 20_000_000:  # it goes back after the answer
    assert time.monotonic() < until, held() - before
    time.sleep(0.05)
"""


@only_linux
def test_a_long_text_leaves_no_memory_behind() -> None:
    """Though small blocks that stay lie between its large ones."""
    subprocess.run([sys.executable, "-c", LARGE], check=True, timeout=300)


@pytest.mark.anyio
async def test_who_leaves_a_lane_makes_no_room_in_it() -> None:
    """Before the work is done, however often he comes and goes."""
    lane, first, under_way = Lane(Threads("x", 2), 1, 9), threading.Event(), []

    def work() -> None:
        under_way.append(1)
        first.wait(PATIENCE)

    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lane.run("ann", work), 0.05)
    assert len(under_way) == 1
    first.set()
    assert await lane.run("ann", lambda: 5) == 5
    assert not lane._tenants
    lane.close()


class Matcher:
    """A grammar that allows one id, and takes time to say so."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self.answered = seconds, False

    def compute_bitmask(self) -> bytes:
        time.sleep(self._seconds)
        self.answered = True
        return b"\xff\xff\xff\xff"

    def deep_copy(self) -> "Matcher":
        return self

    def consume_token(self, token: int) -> None:
        pass

    def is_stopped(self) -> bool:
        return False


@pytest.mark.parametrize(("seconds", "finish"), [(0.05, "length"), (60, "length")])
def test_a_slow_grammar_holds_up_only_itself(
    seconds: float, finish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbour's turns go on; an answer whose next token is unknown for long ends."""
    monkeypatch.setattr(grammar, "_SECONDS", 0.5)
    threads = Threads("masks", 1)
    limits = Limits(slots=2, pages=64, page=16, chunk=16, step_tokens=4, queue=9)
    schedule, device = Scheduler(limits), Fake(limits)
    loop = Loop(schedule, device)
    matcher: Any = Matcher(seconds)
    slow = Client([1, 2], 3, constraint=Constraint(matcher, threads, b"\xff" * 4))
    plain = Client([3], 200)
    for client in (slow, plain):
        schedule.submit(client.request)
    while not plain.finish:
        loop.turn()
    assert seconds < 1 or not matcher.answered
    loop.run(2000)
    assert slow.finish == finish
    assert slow.tokens == (slow.wanted if seconds < 1 else slow.wanted[:1])
    threads.close()
