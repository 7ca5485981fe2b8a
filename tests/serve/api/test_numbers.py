"""Every number in an answer obeys its definition, and a stream's are those of the whole answer."""

import json
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Running, Serve
from tests.serve.raw_http import CHAT

COMPLETION = "/v1/completions"
WIDE = "naïve 你好 🎉 done, 再见。"

Object = dict[str, Any]  # of JSON


def events(url: str, body: Object) -> list[Object]:
    lines = httpx.post(url, json=body | {"stream": True}, timeout=60).text.split("\n\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def rebuilt(url: str, body: Object) -> tuple[list[Object], Object]:
    """The choices and the usage that a stream adds up to."""
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    *chunks, last = events(url, body | options)
    choices: list[Object] = [
        {"text": "", "finish": None, "entries": []} for _ in range(body.get("n", 1))
    ]
    totals = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert totals == sorted(totals)
    for chunk in chunks:
        (choice,) = chunk["choices"]
        made = choices[choice["index"]]
        assert made["finish"] is None
        delta = choice.get("delta", {})
        assert sum(bool(delta.get(name)) for name in ("content", "tool_calls")) <= 1
        made["text"] += choice.get("text") or delta.get("content") or ""
        made["entries"] += entries(choice["logprobs"])
        made["finish"] = choice["finish_reason"]
    return choices, last["usage"]


def entries(scores: Object | None) -> list[Object]:
    """The entries of log probabilities in either form, one by one."""
    if scores is None:
        return []
    if "content" in scores:
        return scores["content"]
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return [
        dict(zip(names, entry, strict=True)) for entry in zip(*map(scores.get, names), strict=True)
    ]


def told(url: str, body: Object) -> tuple[list[Object], Object]:
    """The same of a whole answer, and its usage."""
    made = httpx.post(url, json=body, timeout=60).json()
    return [
        {
            "text": choice["text"] if "text" in choice else choice["message"]["content"],
            "finish": choice["finish_reason"],
            "entries": entries(choice["logprobs"]),
        }
        for choice in made["choices"]
    ], made["usage"]


def check_usage(usage: Any) -> None:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert 0 <= thought <= usage["completion_tokens"]


def check_completion(choice: Any, most: int) -> None:
    tokens = choice["entries"]
    assert "".join(entry["tokens"] for entry in tokens) == choice["text"]
    offsets = [len("".join(e["tokens"] for e in tokens[:n])) for n in range(len(tokens))]
    assert [entry["text_offset"] for entry in tokens] == offsets
    for entry in tokens:
        if entry["token_logprobs"] is not None:
            best = entry["top_logprobs"]
            assert most <= len(best) <= most + 1
            assert best[entry["tokens"]] == entry["token_logprobs"] <= 0
            assert list(best.values()) == sorted(best.values(), reverse=True)


def check_chat(choice: Any, most: int) -> None:
    spelled = b"".join(bytes(entry["bytes"]) for entry in choice["entries"])
    assert spelled.decode("utf-8", "replace") == choice["text"]
    for entry in choice["entries"]:
        best = [one["logprob"] for one in entry["top_logprobs"]]
        assert len(best) == most
        assert best == sorted(best, reverse=True)
        own = {name: entry[name] for name in ("token", "logprob", "bytes")}
        assert own in entry["top_logprobs"] or entry["logprob"] <= best[-1]


WAYS: dict[str, Object] = {
    "free": {},
    "several": {"n": 3},
    "to the limit": {"ignore_eos": True, "max_tokens": 40, "n": 2},
    "stopped": {"stop": ["e", "o ", "th", "\ufffd"], "n": 3},
    "stopped late": {"stop": ["e", "t", "\ufffd"], "min_tokens": 7, "n": 3},
    "a token": {"stop_token_ids": list(range(64, 74)), "n": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["chat", "completion", "echo"])
def test_numbers(tiny: Running, way: str, seed: int, form: Any) -> None:
    """Random answers hold halves of characters, control tokens and rows that are no token."""
    asked = {"model": "tiny", "seed": seed, "max_tokens": 30, **WAYS[way]}
    if form == "chat":
        url, check = tiny.url + CHAT, check_chat
        messages = [{"role": "user", "content": "the dog"}]
        asked |= {"messages": messages, "logprobs": True, "top_logprobs": 3}
    else:
        url, check = tiny.url + COMPLETION, check_completion
        asked |= {"prompt": "the 你 fox", "logprobs": 3, "echo": form == "echo"}
    choices, usage = told(url, asked)
    again, used = rebuilt(url, asked)
    assert again == choices
    check_usage(usage)
    assert used["completion_tokens"] == usage["completion_tokens"]
    prompt = usage["prompt_tokens"] if form == "echo" else 0
    counts = [len(choice["entries"]) - prompt for choice in choices]
    ends = [choice["finish"] == "stop" for choice in choices]
    assert sum(counts) <= usage["completion_tokens"]
    if not any(ends):
        assert sum(counts) == usage["completion_tokens"] == asked["max_tokens"] * len(choices)
    for choice in choices:
        check(choice, 3)
        if choice["finish"] == "stop" and form != "echo" and "min_tokens" not in asked:
            assert not any(stop in choice["text"] for stop in asked.get("stop", ()))


@pytest.mark.parametrize("stop", [None, "好", "🎉 d", " done, 再"])
def test_characters_in_several_tokens(scripted: Serve, stop: Any) -> None:
    with scripted(WIDE) as running:
        asked = {"model": "tiny", "prompt": "再 a", "logprobs": 1, "max_tokens": 90, "stop": stop}
        for echo in (False, True):
            url, body = running.url + COMPLETION, asked | {"echo": echo}
            (choice,), usage = told(url, body)
            assert choice["text"] == "再 a" * echo + WIDE.split(stop or WIDE[-1:] + "?")[0]
            check_completion(choice, 1)
            assert rebuilt(url, body)[0] == [choice]
            check_usage(usage)


def test_min_tokens_hold_against_stop_strings(scripted: Serve) -> None:
    with scripted("a b a b a b a b") as running:
        ask = {"model": "tiny", "prompt": "x", "max_tokens": 50, "stop": " b"}
        size = len(running.model.tokenizer.encode("a b a b"))
        url = running.url + COMPLETION
        assert told(url, ask)[0][0]["text"] == "a"
        (choice,), usage = told(url, ask | {"min_tokens": size})
        assert (choice["text"], choice["finish"]) == ("a b a b a", "stop")
        assert usage["completion_tokens"] > size


def test_usage_is_null_until_the_end(tiny: Running) -> None:
    asked = {"model": "tiny", "prompt": "a", "stream_options": {"include_usage": True}}
    *chunks, last = events(tiny.url + COMPLETION, asked)
    assert {chunk["usage"] for chunk in chunks} == {None}
    check_usage(last["usage"])
    assert not any(
        "usage" in event
        for event in events(tiny.url + COMPLETION, {**asked, "stream_options": None})
    )
