"""LiteLLM's proxy between a client and the server: chat and Responses pass through it."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from benchmarks.clients.conftest import PROXY
from tools.recite import first_turns

QUESTION = "Who are you?"
ANSWER = dict(first_turns())[QUESTION]
KEY, SECONDS = "sk-of-the-proxy", 120
SAY: Any = {"model": "local", "messages": [{"role": "user", "content": QUESTION}]}
ASK: Any = {"model": "local", "input": QUESTION}
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """OpenAI's, of the proxy."""
    folder = tmp_path_factory.mktemp("proxy")
    own = {"model": "openai/demo", "api_base": f"{server.url}/v1", "api_key": server.key}
    config = {
        "model_list": [{"model_name": "local", "litellm_params": own}],
        "general_settings": {"master_key": KEY},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PROXY), "--config", "config.yaml"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    quiet = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=quiet, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(SECONDS):
            time.sleep(1)
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                if httpx.get(f"{url}/health/liveliness").is_success:
                    break
            except httpx.TransportError:
                pass
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as made:
            yield made
    finally:
        process.kill()
        process.wait()


def test_chat(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(**SAY, temperature=0)
    assert made.choices[0].message.content == ANSWER
    stream = client.chat.completions.create(**SAY, temperature=0, stream=True)
    told = [event.choices[0].delta.content or "" for event in stream if event.choices]
    assert "".join(told) == ANSWER


def test_chat_tools(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    made = client.chat.completions.create(**SAY, tools=[tool], tool_choice="required")
    calls: Any = made.choices[0].message.tool_calls
    assert json.loads(calls[0].function.arguments) == {"city": "Paris"}


def test_responses(client: openai.OpenAI) -> None:
    made = client.responses.create(**ASK, temperature=0)
    assert made.output_text == ANSWER
    again = client.responses.create(**ASK, temperature=0, previous_response_id=made.id)
    assert again.usage is not None
    assert made.usage is not None
    assert again.usage.input_tokens > made.usage.input_tokens


def test_responses_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(**ASK, temperature=0) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == ANSWER


def test_responses_tools(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": WEATHER}
    made = client.responses.create(**ASK, tools=[tool], tool_choice="required")
    (call,) = (item for item in made.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"city": "Paris"}


def test_a_fault_is_the_server_s(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="web_search"):
        client.responses.create(**ASK, tools=[{"type": "web_search"}])
