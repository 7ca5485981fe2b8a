"""/generate, /generate_stream and /info: text-generation-inference's forms."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient

from serve.engine.operations import Prefill
from serve.http.keys import Keys
from tests.serve.conftest import Running, Serve

TEXT, END = "no way at all", ["<|im_end|>"]
ASK = {"inputs": "hi", "parameters": {"stop": END}}


@pytest.fixture(scope="module")
def server(scripted: Serve) -> Iterator[Running]:
    with scripted(TEXT, length=512) as running:
        yield running


def post(running: Running, path: str = "/generate", **parameters: Any) -> Any:
    body = {"inputs": "hi", "parameters": {"stop": END, **parameters}}
    answer = httpx.post(running.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(running: Running, path: str = "/generate_stream", **body: Any) -> list[Any]:
    with httpx.stream("POST", running.url + path, json=ASK | body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_continuation(server: Running) -> None:
    assert post(server, max_new_tokens=40) == {"generated_text": TEXT}
    assert post(server, "/") == {"generated_text": TEXT}
    assert post(server, return_full_text=True)["generated_text"] == "hi" + TEXT
    made = post(server, details=True, decoder_input_details=True, top_n_tokens=1, seed=3)
    details = made["details"]
    assert (details["finish_reason"], details["seed"]) == ("eos_token", 3)
    assert "".join(token["text"] for token in details["tokens"]) == TEXT
    assert "".join(token["text"] for token in details["prefill"]) == "hi"
    assert len(details["top_tokens"]) == len(details["tokens"])
    assert details["generated_tokens"] == len(details["tokens"]) + 1
    assert post(server, details=True, max_new_tokens=2)["details"]["finish_reason"] == "length"
    stopped = post(server, details=True, stop=["way"])
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    assert stopped["generated_text"] == "no "


def test_events_are_tokens(server: Running) -> None:
    for path, body in (("/generate_stream", {}), ("/generate", {"stream": True})):
        events = streamed(server, path, **body)
        assert [event["index"] for event in events] == list(range(1, len(events) + 1))
        assert "".join(event["token"]["text"] for event in events) == TEXT
        *before, last = events
        assert all(event["generated_text"] is event["details"] is None for event in before)
        assert (last["generated_text"], last["details"]["finish_reason"]) == (TEXT, "eos_token")
        assert last["details"]["input_length"] == len(server.model.tokenizer.encode("hi"))


def test_chance_is_asked_for(server: Running) -> None:
    def temperature(**how: Any) -> float:
        server.script.log.clear()
        post(server, **how)
        pieces = [op.pieces for op in server.script.log if isinstance(op, Prefill)]
        ((one,),) = pieces
        return float(one.settings.temperature[0])

    assert temperature() == temperature(do_sample=False) == temperature(temperature=0)
    assert temperature(temperature=0.5) != temperature() != temperature(temperature=0.9)


def test_a_prompt_keeps_its_end(server: Running) -> None:
    details = post(server, truncate=1, details=True, decoder_input_details=True)["details"]
    (token,) = details["prefill"]
    assert token["id"] == server.model.tokenizer.encode("hi")[-1]
    parameters = {"truncate": 9, "stop": END}  # of more than the window holds
    answer = server.http.post("/generate", json={"inputs": "hi " * 9000, "parameters": parameters})
    assert answer.json() == {"generated_text": TEXT}


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "regex", "value": "y(e)s"},
        {"type": "json", "value": {"enum": ["yes"]}},
    ],
)
def test_grammars(server: Running, grammar: Any) -> None:
    assert post(server, grammar=grammar)["generated_text"].strip('"') == "yes"


def test_the_client_of_hugging_face(server: Running) -> None:
    for url in (server.url, f"{server.url}/generate"):
        client = InferenceClient(url)
        assert client.text_generation("hi", stop=END) == TEXT
        assert "".join(client.text_generation("hi", stop=END, stream=True)) == TEXT
        made: Any = client.text_generation("hi", stop=END, details=True)
        assert (made.generated_text, made.details.finish_reason) == (TEXT, "eos_token")
    told = httpx.get(f"{server.url}/info").json()
    assert (told["model_id"], told["max_total_tokens"]) == ("tiny", server.model.length)


def test_who_leaves_frees_the_slot(scripted: Serve) -> None:
    with scripted("so " * 2000, seconds=0.02) as running:
        body = {"inputs": "hi", "parameters": {"max_new_tokens": 2000}}
        with httpx.stream("POST", f"{running.url}/generate_stream", json=body) as answer:
            next(answer.iter_lines())
        running.settle()


def test_keys_hold_at_the_root_too(scripted: Serve) -> None:
    with scripted(keys=Keys({"a" * 16: "ann"})) as running:
        for path in ("/", "/generate", "/generate_stream"):
            answer = httpx.post(running.url + path, json={"inputs": "hi"})
            assert answer.status_code == 401
        assert httpx.get(running.url).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"typical_p": 0.5}, "parameters.typical_p"),
        ({"watermark": True}, "parameters.watermark"),
        ({"best_of": 2}, "parameters.best_of"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 999}, "at most 512 fit"),
        ({"temperature": -1}, "temperature"),
        ({"grammar": {"type": "regex"}}, "grammar"),
        ({"n": 2}, "parameters.n"),
        ({"model": "x"}, "parameters.model"),
    ],
)
def test_refusals_name_the_field(server: Running, parameters: Any, match: str) -> None:
    body = {"inputs": "hi", "parameters": parameters}
    answer = httpx.post(f"{server.url}/generate", json=body)
    assert answer.status_code == 400
    assert match in answer.json()["error"]
    assert answer.json()["error_type"] == "validation"


def test_an_adapter_by_its_name(server: Running) -> None:
    body = {"inputs": "hi", "parameters": {"adapter_id": "other"}}
    answer = httpx.post(f"{server.url}/generate", json=body)
    assert answer.status_code == 404
    assert "no model 'other'" in answer.json()["error"]
