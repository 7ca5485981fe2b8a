"""The largest bodies and answers there may be hold up the event loop for no more than moments."""

import gc
import itertools
import json
import subprocess
import sys
import time

import httpx
import pytest

MOST = 4 * 2**20 - 200  # bytes of a body, but for what stands around its one long part
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def words(count):
    return "".join(itertools.islice(itertools.cycle(["the dog ", "你好", "x\n", "12 "]), count))


STRINGS = {"prompt": words(MOST // 6), "return_token_strs": True}
ECHO = {"prompt": "the " * 900, "echo": True, "logprobs": 20, "max_tokens": 0}
LOGPROBS = {"n": 16, "logprobs": 20, "max_tokens": 400, "ignore_eos": True}


def message(content):
    return {"messages": [{"role": "user", "content": content}]}


LARGEST = {
    "prompt": (TEXT, {"prompt": "the dog " * (MOST // 8)}, 400),
    "prompt of escapes": (TEXT, {"prompt": "\U0001f600" * (MOST // 13)}, 400),
    "ids": (TEXT, {"prompt": [300] * 500_000}, 400),
    "messages": (CHAT, {"messages": message("a" * 1900)["messages"] * 2048}, 400),
    "a message": (CHAT, message("the dog " * (MOST // 8)), 400),
    "tokenize": ("/tokenize", {"prompt": words(MOST // 6)}, 200),
    "strings of tokens": ("/tokenize", STRINGS, 200),
    "tokenize messages": ("/tokenize", message("the dog " * (MOST // 8)), 200),
    "detokenize": ("/detokenize", {"tokens": list(range(400)) * 1300}, 200),
    "scores": (TEXT, {"prompt": "the dog " * 16, **LOGPROBS}, 200),
    "scores of a prompt": (TEXT, ECHO, 200),
    "scores of a stream": (TEXT, {"prompt": "the", "stream": True, **LOGPROBS}, 200),
    "openapi": ("/openapi.json", None, 200),
    "metrics": ("/metrics", None, 200),
    "models": ("/v1/models", None, 200),
    "tokenizer": ("/tokenizer_info", None, 200),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(scripted):
    with scripted("la " * 500, max_choices=16, slots=16) as running:
        gc.collect()
        gc.freeze()  # as a server does that has its model
        yield running
        gc.unfreeze()


# In a process of its own: what a client does should not count.
CLIENT = """
import sys, http.client
host, method, path = sys.argv[1:]
connection = http.client.HTTPConnection(host, timeout=120)
connection.request(method, path, sys.stdin.buffer.read() or None)
answer = connection.getresponse()
while answer.read(2**20):
    pass
print(answer.status)
"""


@pytest.mark.parametrize("name", LARGEST)
def test_nobody_waits(server, name):
    """Not longer than a tenth of a second, but for what a busy machine adds by itself."""
    path, body, status = LARGEST[name]
    content, method = b"", "GET"
    if body is not None:
        method = "POST"
        asked = json.dumps({"model": "tiny"} | body, ensure_ascii="escapes" in name)
        content = asked.encode()
    command = [sys.executable, "-c", CLIENT, server.url.removeprefix("http://"), method, path]
    time.sleep(1)
    usual, began = server.service.lag.worst(1), time.monotonic()
    done = subprocess.run(command, input=content, capture_output=True, timeout=120, check=True)
    seconds = time.monotonic() - began
    worst = server.service.lag.worst(seconds)
    print(f"{name}: {worst * 1e3:.0f} ms in {seconds:.1f} s; before, {usual * 1e3:.0f} ms")
    assert int(done.stdout) == status
    assert worst < 0.1 + 3 * usual


def test_what_is_rendered_in_pieces_is_json(server):
    text = words(200_000)
    asked = {"prompt": text, "return_token_strs": True}
    answer = httpx.post(server.url + "/tokenize", json=asked, timeout=60).json()
    ids = server.model.tokenizer.encode(text, specials=True)
    assert answer["tokens"] == ids
    assert answer["count"] == len(ids)
    assert "".join(answer["token_strs"][:8]).startswith("the dog ")
    back = httpx.post(server.url + "/detokenize", json={"tokens": ids}, timeout=60).json()
    assert back == {"prompt": text}
