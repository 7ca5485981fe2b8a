"""What whoever runs a server relies on: TLS, CORS, logs, metrics, loading and draining."""

import dataclasses
import json
import logging
import re
import ssl
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from serve.app import build
from serve.engine.dashboards import Dashboards
from serve.engine.request import Request
from serve.http.keys import Keys
from serve.service import Service
from serve.settings import ServeConfig
from tests.serve.conftest import SETTINGS, Serve

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}]}
CHAT = "/v1/chat/completions"


def test_tls(scripted: Serve, certificate: tuple[Path, Path]) -> None:
    key, public = certificate
    with scripted(tls_certificate=public, tls_key=key) as running:
        # the port speaks TLS and nothing else
        trusted = ssl.create_default_context(cafile=str(public))
        url = running.url.replace("http:", "https:")
        with httpx.Client(verify=trusted) as client:
            assert client.post(url + CHAT, json=ASK).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(running.url + "/health")


def test_no_page_from_elsewhere_may_ask(scripted: Serve) -> None:
    asked = {"Origin": "https://elsewhere.example"}
    with scripted() as running:
        answer = httpx.get(running.url + "/health", headers=asked)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    with scripted(cors=("https://friend.example",), keys=Keys({"k" * 16: "ann"})) as running:
        for origin, allowed in (("https://friend.example", True), (asked["Origin"], False)):
            headers = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            }
            answer = httpx.options(running.url + CHAT, headers=headers)
            assert (answer.headers.get("access-control-allow-origin") == origin) == allowed


def test_the_log_holds_no_text(scripted: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with scripted("a secret answer") as running:
        httpx.post(running.url + CHAT, json=ASK, headers={"X-Request-Id": "mine"})
        httpx.post(running.url + CHAT, json=ASK | {"secret": 1}, headers={"X-Request-Id": "b\tad"})
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "secret" not in said
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    posts = [line for line in lines if line["method"] == "POST"]
    assert [line["status"] for line in posts] == [200, 400]
    assert posts[0]["id"] == "mine"
    assert posts[0]["finish"] == ["stop"]
    assert posts[0]["new_tokens"] > 3
    assert re.fullmatch("req-[0-9a-f]{16}", posts[1]["id"])


def test_prompts_are_logged_on_request(scripted: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with scripted(log_prompts=True) as running:
        httpx.post(running.url + CHAT, json=ASK)
        records = [record for record in caplog.records if record.name == "serve.requests"]
        (line,) = [json.loads(r.getMessage()) for r in records if CHAT in r.getMessage()]
        assert "a secret question" in running.model.tokenizer.decode(line["prompt"])


def test_metrics_count(scripted: Serve) -> None:
    with scripted("one two three") as running:
        answer = httpx.post(running.url + CHAT, json=ASK).json()
        httpx.post(running.url + CHAT, json={})
        usage = answer["usage"]
        assert running.metric("qwen_prompt_tokens_total") == usage["prompt_tokens"]
        assert running.metric("qwen_generated_tokens_total") == usage["completion_tokens"]
        assert running.metric('qwen_requests_finished_total{reason="stop"}') == 1
        assert running.metric('qwen_requests_rejected_total{status="400"}') == 1
        assert running.metric("qwen_time_to_first_token_seconds_count") == 1
        assert running.metric("qwen_time_per_output_token_seconds_count") == 1
        assert running.metric("qwen_ready") == 1
        assert running.metric("qwen_cache_usage") == 0


def test_metrics_have_the_names_that_others_look_for(scripted: Serve) -> None:
    """vLLM's dashboards, and the protocol of the Gateway API's inference extension."""
    ask = ASK | {"max_tokens": 20}
    how = {"step_tokens": 1, "pages": 100, "draft_tokens": 2}
    with scripted("la " * 50, seconds=0.5, **how) as running:
        with httpx.stream("POST", running.url + CHAT, json=ask | {"stream": True}) as answer:
            lines = (line for line in answer.iter_lines() if '"content": "l"' in line)
            next(lines)
            text = httpx.get(running.url + "/metrics").text
            running.script.seconds = 0.0
            list(lines)
        usage = httpx.post(running.url + CHAT, json=ask).json()["usage"]
        after = httpx.get(running.url + "/metrics").text
    number = lambda text, name: [
        float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)
    ]
    label = '{model_name="tiny"}'
    assert number(text, f"vllm:num_requests_running{label}") == [1]
    assert number(text, f"vllm:num_requests_waiting{label}") == [0]
    assert 0 < number(text, f"vllm:kv_cache_usage_perc{label}")[0] < 1
    assert number(after, f"vllm:prefix_cache_queries_total{label}") == [2 * usage["prompt_tokens"]]
    found = usage["prompt_tokens_details"]["cached_tokens"]
    assert number(after, f"vllm:prefix_cache_hits_total{label}") == [found]
    assert found > 0
    counts = [
        number(after, f"vllm:spec_decode_num_{name}_total{label}")[0]
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    ]
    assert counts[1] == 2 * counts[0] > 0
    told = usage["completion_tokens_details"]
    assert 0 <= told["accepted_prediction_tokens"] <= counts[2] < counts[1]
    assert told["accepted_prediction_tokens"] + told["rejected_prediction_tokens"] == counts[1] / 2
    ended = 'vllm:request_success_total{finished_reason="length",model_name="tiny"}'
    assert (number(text, ended), number(after, ended)) == ([], [2])
    assert "# TYPE vllm:time_to_first_token_seconds histogram" in after
    assert number(after, f"vllm:e2e_request_latency_seconds_count{label}") == [2]
    assert 'vllm:cache_config_info{block_size="16",' in after
    assert 'num_gpu_blocks="100"' in after


def test_metrics_say_who_follows_which_adapter() -> None:
    running, waiting = (Request([1], None, 1, lambda update: None) for _ in range(2))
    running.slot = 3
    dashboards = Dashboards(CollectorRegistry(), "tiny", 1, 1)
    dashboards.adapters = lambda: (4, {"fox": [running, waiting], "dog": [running], "cat": []})
    (told,) = [one for one in dashboards.collect() if one.name == "vllm:lora_requests_info"]
    assert told.samples[0].labels == {
        "max_lora": "4",
        "running_lora_adapters": "fox,dog",
        "waiting_lora_adapters": "fox",
    }
    assert told.samples[0].value == pytest.approx(time.time(), abs=60)


def test_before_the_model_is_there() -> None:
    service = Service(SETTINGS)
    with TestClient(build(service, Keys({})), "http://localhost") as client:
        assert client.get("/health").status_code == 200
        for answer in (client.get("/ready"), client.post(CHAT, json=ASK), client.get("/v1/models")):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            assert answer.json()["error"]["message"] == "the model is being loaded"
        service.failure = "no such folder"
        assert client.get("/health").status_code == 503
        assert "no such folder" in client.get("/ready").json()["error"]["message"]


def test_while_it_drains(scripted: Serve) -> None:
    with scripted() as running:
        running.service.draining = True
        for path in ("/ready", "/v1/models"):
            assert httpx.get(running.url + path).status_code == 503
        assert httpx.post(running.url + CHAT, json=ASK).status_code == 503
        assert httpx.get(running.url + "/health").status_code == 200


def test_keys_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nann 0123456789abcdef\n\nbob fedcba9876543210\n")
    keys = Keys.read(file)
    assert keys.owner("/v1/models", "Bearer 0123456789abcdef") == "ann"
    assert keys.owner("/v1/models", "bearer  fedcba9876543210") == "bob"
    for wrong in ("Bearer 0123456789abcde", "Bearer ann", "0123456789abcdef", "Bearer \udcff"):
        assert keys.owner("/v1/models", wrong) is None
    twice = "ann 0123456789abcdef\nbob 0123456789abcdef\n"
    for content in (
        "",
        "ann\n",
        "ann short\n",
        "ann 0123456789abcdef more\n",
        "ann " + "é" * 16,
        twice,
    ):
        file.write_text(content, "utf-8")
        with pytest.raises(ValueError, match=str(file)):
            Keys.read(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 33}, "a power of two"),
        ({"slots": 0}, "slots is 0, wanted 1 to 4096"),
        ({"max_length": 1}, "max_length is 1"),
        ({"tls_key": __file__}, "belong together"),
        ({"processes": 2}, "belong together"),
        ({"max_connections": 0}, "max_connections is 0"),
        ({"allowed_host": ("http://a",)}, "allowed_host is 'http://a', wanted a name"),
        ({"cors": ("https://a.example/",)}, "cors is 'https://a.example/', wanted an origin"),
        ({"coordinator": "a:1"}, "belong together"),
        ({"coordinator": "auto", "process": 1}, "belong together"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    change = {name: Path(value) if "tls" in name else value for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ServeConfig(), **change)
