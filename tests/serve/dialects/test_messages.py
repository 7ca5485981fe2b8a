"""/v1/messages: Anthropic's form of requests, answers, streams and errors."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve.dialects import messages
from serve.http.keys import Keys
from tests.serve.conftest import Running, Serve
from tests.serve.dialects.events import check_messages, sent
from tests.serve.dialects.test_responses import ANSWER
from tests.serve.text.test_thinking import HYBRID, TOLD
from tests.serve.text.test_tools import TIME, WEATHER

URL = "/v1/messages"
ASK: Any = {
    "model": "tiny",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "hi"}],
}


def tool(function: dict[str, Any]) -> dict[str, Any]:
    return {{"parameters": "input_schema"}.get(name, name): function[name] for name in function}


TOOLS = [tool(WEATHER), tool(TIME)]


@pytest.fixture(scope="module")
def thinker(scripted: Serve) -> Iterator[Running]:
    with scripted(ANSWER, HYBRID, length=1024) as running:
        yield running


def post(running: Running, path: str = URL, **body: Any) -> Any:
    answer = httpx.post(running.url + path, json=ASK | body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def fault(answer: httpx.Response, status: int, match: str, kind: str) -> None:
    """Anthropic's form of an error."""
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert (error["type"], error["error"]["type"]) == ("error", kind)
    assert match in error["error"]["message"], error


def test_a_message(thinker: Running) -> None:
    made = post(thinker, tools=TOOLS)
    thought, text, weather, time, rest = made["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", TOLD)
    assert thought["signature"]
    assert (text["text"], rest["text"]) == ("Let me see.\n", "So.")
    assert (weather["name"], weather["input"]) == ("weather", {"city": "Rome"})
    assert (time["name"], time["input"]) == ("time", {})
    assert weather["id"] != time["id"]
    assert (made["type"], made["role"], made["model"]) == ("message", "assistant", "tiny")
    assert (made["stop_reason"], made["stop_sequence"]) == ("tool_use", None)
    usage = post(thinker, tools=TOOLS)["usage"]
    count = post(thinker, URL + "/count_tokens", max_tokens=None, tools=TOOLS)["input_tokens"]
    assert usage["cache_read_input_tokens"] > 0
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count
    assert usage["output_tokens"] == made["usage"]["output_tokens"] > 0


def test_a_stream_is_the_same_message(thinker: Running) -> None:
    whole = post(thinker, tools=TOOLS)
    events = sent(thinker.url + URL, ASK | {"tools": TOOLS})
    assert all(name == event["type"] for name, event in events)
    streamed = check_messages([event for _, event in events])
    for made in (whole, streamed):
        assert made.pop("id").startswith("msg_")
        made.pop("usage")
        for block in made["content"]:
            block.pop("id", None)
    assert streamed == whole


def test_why_it_ended(thinker: Running, scripted: Serve) -> None:
    reason = lambda **how: [post(thinker, **how)[name] for name in ("stop_reason", "stop_sequence")]
    assert reason() == ["end_turn", None]
    assert reason(max_tokens=3) == ["max_tokens", None]
    assert reason(stop_sequences=["never", "me s"]) == ["stop_sequence", "me s"]
    assert reason(stop_sequences=["So."], tools=TOOLS) == ["stop_sequence", "So."]
    with scripted("Thought: I am.\nFinal Answer: yes") as original:  # a stop of its own is none
        assert post(original, tools=TOOLS)["stop_reason"] == "end_turn"


def test_choosing_tools(thinker: Running) -> None:
    def called(**choice: Any) -> list[str]:
        made = post(thinker, tools=TOOLS, tool_choice=choice, thinking={"type": "disabled"})
        return [block["name"] for block in made["content"] if block["type"] == "tool_use"]

    assert called(type="auto") == ["weather", "time"]
    assert called(type="auto", disable_parallel_tool_use=True) == ["weather"]
    assert called(type="none") == []
    assert called(type="tool", name="time") == ["time"]
    assert set(called(type="any", disable_parallel_tool_use=True)) <= {"weather", "time"}


def test_thinking(thinker: Running, scripted: Serve) -> None:
    count = lambda **how: post(thinker, URL + "/count_tokens", max_tokens=None, **how)
    free, off = count(), count(thinking={"type": "disabled"})
    on = count(thinking={"type": "enabled", "budget_tokens": 1024})
    assert count(thinking={"type": "adaptive"}) == free == on != off
    with scripted() as original:
        assert post(original, thinking={"type": "disabled"})["content"]
        answer = httpx.post(original.url + URL, json=ASK | {"thinking": {"type": "enabled"}})
        fault(answer, 400, "enable_thinking", "invalid_request_error")


def test_a_call_that_was_cut(scripted: Serve) -> None:
    with scripted("no", HYBRID) as running:
        how: Any = {
            "tools": TOOLS[:1],
            "tool_choice": {"type": "any"},
            "thinking": {"type": "disabled"},
        }
        whole = post(running, **how)
        for most in range(12, whole["usage"]["output_tokens"], 3):
            made = post(running, **how, max_tokens=most)
            assert made["stop_reason"] == "max_tokens"
            for block in made["content"]:
                if block["type"] == "tool_use" and block["input"] not in ({}, {"city": "Bonn"}):
                    (partial,) = block["input"].values()
                    assert '{"city": "Bonn"}'.replace(" ", "").startswith(partial.replace(" ", ""))


def test_schemas(scripted: Serve) -> None:
    with scripted("no", HYBRID) as running:
        form = {"type": "json_schema", "schema": {"enum": ["yes"]}}
        for how in ({"output_config": {"format": form}}, {"output_format": form}):
            made = post(running, **how, thinking={"type": "disabled"})
            assert [block["text"] for block in made["content"]] == ['"yes"']


def test_an_answer_goes_on(scripted: Serve) -> None:
    with scripted(" world", HYBRID) as running:
        turns = [*ASK["messages"], {"role": "assistant", "content": "Hello,"}]
        assert post(running, messages=turns)["content"][0]["text"] == " world"
        ids = httpx.post(
            running.url + "/tokenize",
            json={
                "messages": turns,
                "add_generation_prompt": False,
                "continue_final_message": True,
            },
        ).json()
        count = post(running, URL + "/count_tokens", max_tokens=None, messages=turns)
        assert count["input_tokens"] == ids["count"]


def test_pings_while_nothing_comes(scripted: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_PING_SECONDS", 0.05)
    with scripted("a b c d", HYBRID, seconds=0.3) as running:
        events = [event for _, event in sent(running.url + URL, ASK)]
        assert [event["type"] for event in events].count("ping") > 3
        assert check_messages(events)["content"] == [{"type": "text", "text": "a b c d"}]


def test_who_leaves_frees_the_slot(scripted: Serve) -> None:
    with scripted("so " * 2000, HYBRID, seconds=0.02) as running:
        body = ASK | {"stream": True, "max_tokens": 2000}
        with httpx.stream("POST", running.url + URL, json=body) as answer:
            assert next(answer.iter_lines()) == "event: message_start"
        running.settle()


def test_a_failure_is_an_event(scripted: Serve) -> None:
    with scripted("so " * 50, HYBRID, seconds=0.02) as running:
        running.script.failures = 1
        (*_, (name, last)) = sent(running.url + URL, ASK)
        assert name == last["type"] == "error"
        assert last["error"]["type"] == "api_error"


def test_keys(scripted: Serve) -> None:
    with scripted(keys=Keys({"a" * 16: "ann"})) as running:
        version = {"anthropic-version": "2023-06-01"}
        for headers in ({"x-api-key": "a" * 16}, {"Authorization": f"Bearer {'a' * 16}"}):
            answer = httpx.post(running.url + URL, json=ASK, headers=headers | version)
            assert answer.status_code == 200
        for headers in ({}, {"x-api-key": "b" * 16}):
            answer = httpx.post(running.url + URL, json=ASK, headers=headers | version)
            fault(answer, 401, "x-api-key", "authentication_error")
        assert httpx.get(running.url + "/v1/models", headers={"x-api-key": "a" * 16}).is_success


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "'web_search_20250305'"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image'"),
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 9999}, "at most 1024 fit"),
        ({"temperature": 101}, "temperature"),
        ({"stop": ["x"]}, "stop: this field is not supported"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"thinking": {"type": "enabled", "display": "omitted"}}, "thinking.display"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "'x'"),
        ({"n": 2}, "n: "),
        ({"model": "other"}, "no model 'other'"),
    ],
)
def test_refusals_name_the_field(thinker: Running, change: Any, match: str) -> None:
    answer = httpx.post(thinker.url + URL, json=ASK | change)
    missing = "model" in change
    kind = "not_found_error" if missing else "invalid_request_error"
    fault(answer, 404 if missing else 400, match, kind)


def test_other_faults_have_the_form(thinker: Running) -> None:
    fault(httpx.get(thinker.url + URL), 405, "GET", "invalid_request_error")
    plain = httpx.post(thinker.url + URL, content=b"{}", headers={"Content-Type": "text/plain"})
    fault(plain, 415, "JSON", "invalid_request_error")
    long = b"{" + b" " * 5 * 2**20 + b"}"
    kind = {"Content-Type": "application/json"}
    answer = httpx.post(thinker.url + URL, content=long, headers=kind)
    fault(answer, 413, "larger", "request_too_large")
