"""Many at once: everybody gets what they would get alone, and nothing is left behind."""

import concurrent.futures
import json
import random
import socket
import time
from typing import Any

import httpx
import pytest

from tests.patience import until
from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import CHAT, JSON, head

TEXT = "/v1/completions"
WORDS = "the quick brown fox jumps over lazy dog and doesn't mind at all".split()


def request(number: int) -> tuple[str, dict[str, Any]]:
    """One of many kinds of requests, the same for the same number."""
    chance = random.Random(number)
    words = " ".join(chance.choices(WORDS, k=chance.choice([1, 5, 20])))
    how = {
        "model": "tiny",
        "seed": number,
        "max_tokens": chance.choice([1, 7, 20, 40]),
        "temperature": chance.choice([0, 0.7, 1.5]),
        "top_p": chance.choice([1, 0.8]),
        "repetition_penalty": chance.choice([1, 1.2]),
        "stream": True,
    }
    if number % 10 == 3:
        how["response_format"] = {"type": "regex", "pattern": "[a-z]{3,9}!"}
    if number % 10 == 4:
        how["stop"] = ["e", "你"]
    if number % 10 == 5:
        how["logprobs"] = 3
    if number % 3:
        return TEXT, how | {"prompt": f"{words} {number}"}
    how.pop("logprobs", None)
    return CHAT, how | {"messages": [{"role": "user", "content": f"{words} {number}"}]}


def answer(client: Any, number: int) -> tuple[Any, ...]:
    """The events of a stream but for names and times."""
    path, content = request(number)
    said, scores, finish = "", [], None
    with client.stream("POST", path, json=content) as response:
        assert response.status_code == 200, response.read()
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        (choice,) = json.loads(line)["choices"]
        said += choice.get("text") or choice.get("delta", {}).get("content") or ""
        if choice["logprobs"]:
            scores += choice["logprobs"]["token_logprobs"]
        finish = choice["finish_reason"] or finish
    assert finish in ("stop", "length")
    return said, scores, finish


def test_two_hundred_streams_at_once(tiny: Running) -> None:
    compiled = tiny.metric("qwen_compilations")
    with httpx.Client(base_url=tiny.url, timeout=120) as client:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda number: answer(client, number), range(200)))
        tiny.settle()
        alone = [answer(client, number) for number in range(200)]
    assert len({said for said, *_ in together}) > 150
    different = [n for n in range(200) if together[n] != alone[n]]
    assert not different, [(together[n], alone[n]) for n in different[:3]]
    assert tiny.metric("qwen_compilations") == compiled
    assert tiny.metric("qwen_engine_failures_total") == 0


def test_a_thousand_that_leave(scripted: Serve) -> None:
    """In the queue, before the first token, in the middle: slots and queue end empty."""
    with scripted("la " * 50, seconds=0.001) as running:
        content = json.dumps(
            {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 99}
            | {"stream": True}
        ).encode()
        host, port = running.url.removeprefix("http://").split(":")
        for number in range(1000):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head(len(content)) + content)
                if number % 10 == 0:
                    connection.recv(100)
        gone = lambda: not any(listener.seats for listener in running.server.servers)
        until(lambda: gone() and not running.model.engine.busy, "some of them are still there")
        finished = running.metric('qwen_requests_finished_total{reason="cancelled"}')
        assert finished > 100
        answered = httpx.post(running.url + CHAT, content=content, headers=JSON, timeout=30)
        assert answered.status_code == 200


@pytest.mark.parametrize("count", [6])
def test_a_long_prompt_lets_others_speak(tiny: Running, count: int) -> None:
    """Tokens of an answer keep coming while long prompts are read."""
    with httpx.Client(base_url=tiny.url, timeout=60) as client:
        ask = {"model": "tiny", "prompt": "the fox", "max_tokens": 100, "stream": True, "seed": 1}
        with client.stream("POST", TEXT, json=ask) as first:
            lines, times = first.iter_lines(), []
            next(lines)
            with concurrent.futures.ThreadPoolExecutor(count) as pool:
                long = {"model": "tiny", "prompt": "the quick dog " * 20, "max_tokens": 1}
                others = [pool.submit(client.post, TEXT, json=long) for _ in range(count)]
                for line in lines:
                    if line:
                        times.append(time.monotonic())
                assert all(other.result().status_code == 200 for other in others)
    assert len(times) > 20
