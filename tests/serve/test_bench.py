import asyncio
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.bench import main
from serve.cli.measuring import Outcome, load, metrics
from serve.cli.workload import Job, jsonl_jobs, random_jobs, sharegpt_jobs
from tests.serve.stub import BreaksOff, Refusal, Stub

EXTRA = {"model": "qwen-tiny"}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


def loaded(
    stub: Stub,
    jobs: list[Job],
    concurrency: int | None = None,
    rate: float = float("inf"),
    timeout: float = 30.0,
    seed: int = 0,
) -> tuple[list[Outcome], float]:
    return asyncio.run(load(stub.url, jobs, EXTRA, concurrency, rate, seed, timeout))


def test_metrics() -> None:
    """Worked out by hand."""
    outcomes = [
        Outcome(latency=1.0, texts=[0.2, 0.4, 0.9], input_tokens=10, output_tokens=5),
        Outcome(latency=3.0, texts=[1.0], input_tokens=20, output_tokens=1),
        Outcome(latency=0.5, texts=[], input_tokens=30, output_tokens=3),  # none of them is text
        Outcome(error="no"),
        Outcome(error="no"),
    ]
    found = metrics(outcomes, 4.0)
    assert found["completed"] == 3
    assert (found["failed"], found["errors"]) == (2, {"no": 2})
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (60, 9)
    assert found["request_throughput"] == 0.75
    assert found["output_throughput"] == 2.25
    assert found["total_token_throughput"] == 17.25
    assert found["median_ttft_ms"] == 500
    assert found["mean_ttft_ms"] == pytest.approx((200 + 1000 + 500) / 3)
    assert found["p99_ttft_ms"] == pytest.approx(1000 - 0.02 * 500)
    assert found["mean_tpot_ms"] == pytest.approx((200 + 0) / 2)
    assert found["mean_itl_ms"] == pytest.approx(350)
    assert found["std_itl_ms"] == pytest.approx(150)
    assert found["median_e2el_ms"] == 1000
    assert metrics(outcomes[3:], 1.0)["mean_itl_ms"] is None


def test_known_delays_are_found(stub: Stub) -> None:
    def answer(body: dict[str, Any]) -> Iterator[str]:
        time.sleep(0.3)
        yield "first"
        for _ in range(4):
            time.sleep(0.1)
            yield "more"

    stub.answer = answer
    (outcome,), duration = loaded(stub, [Job([1, 2, 3], 5)])
    assert (outcome.input_tokens, outcome.output_tokens, outcome.error) == (3, 5, "")
    assert 0.3 <= outcome.first < 0.6
    assert len(outcome.texts) == 5
    assert 0.35 <= outcome.texts[-1] - outcome.first < 0.8
    assert outcome.texts[-1] <= outcome.latency <= duration
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert stub.requests == [{"prompt": [1, 2, 3], "max_tokens": 5, **EXTRA, **options}]


def test_so_many_at_a_time_and_no_more(stub: Stub) -> None:
    running, most, lock = set(), [], threading.Lock()

    def answer(body: dict[str, Any]) -> Iterator[str]:
        with lock:
            running.add(id(body))
            most.append(len(running))
        time.sleep(0.05)
        yield "x"
        with lock:
            running.remove(id(body))

    stub.answer = answer
    outcomes, _ = loaded(stub, [Job("a", 1)] * 20, concurrency=5)
    assert all(not outcome.error for outcome in outcomes)
    assert max(most) == 5


def test_arrivals_are_a_poisson_process(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gaps that are waited for: their mean is 1/rate, and they spread as much."""
    waits = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        if sys._getframe(1).f_globals["__name__"] == "serve.cli.measuring":  # others sleep, too
            waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("serve.cli.measuring.asyncio.sleep", record)
    monkeypatch.setattr("serve.cli.measuring.time.perf_counter", lambda: 0.0)
    loaded(stub, [Job("a", 1)] * 60, rate=50.0)
    gaps = [b - a for a, b in itertools.pairwise(waits)]
    mean = sum(gaps) / len(gaps)
    assert 0.014 < mean < 0.028
    assert 0.5 * mean**2 < sum((gap - mean) ** 2 for gap in gaps) / len(gaps) < 2 * mean**2
    first, waits[:] = list(waits), []
    loaded(stub, [Job("a", 1)] * 60, rate=50.0)
    assert waits == first


def test_failures_are_counted_and_named(stub: Stub) -> None:
    def answer(body: dict[str, Any]) -> Iterator[str]:
        match body["max_tokens"]:
            case 1:
                raise Refusal(429, "the queue is full")
            case 2:
                yield "part"
                raise Refusal(500, "it broke")
            case 3:
                yield "part"
                raise BreaksOff
            case 4:
                time.sleep(5)
            case 5:
                body["stream_options"] = {}
        yield "fine"

    stub.answer = answer
    jobs = [Job([{"role": "user", "content": "a b"}], count) for count in (0, 1, 1, 2, 3, 4, 5)]
    outcomes, duration = loaded(stub, jobs, timeout=2.0)
    found = metrics(outcomes, duration)
    assert (found["completed"], found["failed"]) == (1, 6)
    assert found["total_input_tokens"] == 2
    assert found["errors"] == {
        "HTTP 429: the queue is full": 2,
        "it broke": 1,
        "the connection was lost before the answer was whole": 1,
        "ReadTimeout": 1,
        "the server does not say how many tokens there were (usage)": 1,
    }


def test_the_command(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answer = lambda body: ["a", "b"]
    out = tmp_path / "result.json"
    found = main(url=stub.url + "/", requests=5, concurrency=2, warmup=3, input_length=7, out=out)
    assert len(stub.requests) == 8
    assert len({tuple(request["prompt"]) for request in stub.requests}) == 8
    assert stub.requests[0]["ignore_eos"] is True
    saved = json.loads(out.read_text("utf-8"))
    assert saved.items() >= found.items()
    assert saved["total_input_tokens"] == 35
    assert (saved["model_id"], saved["request_rate"], saved["max_concurrency"]) == (
        "qwen-tiny", "inf", 2,
    )  # fmt: skip
    assert "output_throughput" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({}, "give --concurrency, --rate, or both"),
        ({"concurrency": 0}, "--concurrency is 0"),
        ({"rate": -1.0}, "--rate is -1"),
        ({"rate": float("nan")}, "--rate is nan"),
        ({"concurrency": 1, "requests": 0}, "--requests is 0"),
        ({"concurrency": 1, "dataset": "jsonl"}, "--file belongs"),
        ({"concurrency": 1, "spread": 1.0}, "--spread is 1.0"),
        ({"concurrency": 1, "model": "x"}, "no model 'x', it has qwen-tiny"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    stub: Stub, how: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        main(url=stub.url, **how)
    assert stub.requests == []


def test_random_prompts() -> None:
    jobs = random_jobs(200, 1, 100, 20, 0.5)
    assert jobs == random_jobs(200, 1, 100, 20, 0.5) != random_jobs(200, 2, 100, 20, 0.5)
    lengths = [len(job.prompt) for job in jobs]
    assert 50 <= min(lengths) < 60
    assert 140 < max(lengths) <= 150
    assert {job.max_tokens for job in jobs} == set(range(10, 31))
    assert {len(job.prompt) for job in random_jobs(9, 1, 100, 20, 0.0)} == {100}


def test_sharegpt(tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    told = lambda *texts: {"conversations": [{"from": "human", "value": text} for text in texts]}
    words = lambda count: " ".join(["w"] * count)
    good = [told(words(10 + n), words(20 + n), "more") for n in range(4)]
    short, long = told("two words", words(9)), told(words(1025), words(9))
    both, alone = told(words(1000), words(1049)), told(words(9))
    file.write_text(json.dumps([*good, short, long, both, alone, {}]))
    measure = lambda text: len(text.split())
    jobs: list[Any] = sharegpt_jobs(file, 8, 0, None, measure)
    sizes = [(measure(job.prompt[0]["content"]), job.max_tokens) for job in jobs]
    assert sorted(sizes[:4]) == [(10, 20), (11, 21), (12, 22), (13, 23)] == sorted(sizes[4:])
    assert jobs[0].is_chat
    assert jobs != sharegpt_jobs(file, 8, 1, None, measure)
    assert {job.max_tokens for job in sharegpt_jobs(file, 8, 0, 5, measure)} == {5}


def test_sharegpt_is_measured_by_the_server(stub: Stub, tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    turns = [{"value": "one two three four"}, {"value": "a b c d e f"}]
    file.write_text(json.dumps([{"conversations": turns}]))
    main(url=stub.url, dataset="sharegpt", file=file, requests=2, warmup=0, rate=1000.0)
    assert [request["max_tokens"] for request in stub.requests] == [6, 6]


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    messages = [{"role": "user", "content": "c"}]
    rows = [{"prompt": "a\u2028b", "max_tokens": 3}, {"messages": messages, "max_tokens": 4}]
    file.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", "utf-8"
    )
    assert set(map(repr, jsonl_jobs(file, 2, 0, None))) == {
        repr(Job("a\u2028b", 3)),
        repr(Job(messages, 4)),
    }
    file.write_text('{"prompt": "a"}')
    assert jsonl_jobs(file, 1, 0, 9) == [Job("a", 9)]
    for text, error in [
        ('{"prompt": "a"}', "line 1: wanted"),
        ("{", "line 1 is not"),
        ("", "no us"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=error):
            jsonl_jobs(file, 1, 0, None)
