"""The largest bodies a server takes and the largest answers it gives, and who asks for them."""

import itertools
import json
import subprocess
import sys
from typing import Any

MOST = 4 * 2**20 - 200  # bytes of a body, but for what stands around its one long part
TEXT, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"


def words(count: int) -> str:
    return "".join(itertools.islice(itertools.cycle(["the dog ", "你好", "x\n", "12 "]), count))


STRINGS = {"prompt": words(MOST // 6), "return_token_strs": True}
ECHO = {"prompt": "the " * 900, "echo": True, "logprobs": 20, "max_tokens": 0}
LOGPROBS: dict[str, Any] = {"n": 16, "logprobs": 20, "max_tokens": 400, "ignore_eos": True}
# Tools that no prompt shows, and every event about a whole response repeats.
TOOL: dict[str, Any] = {"type": "function", "name": "f"}
TOOL |= {"parameters": {"enum": [{str(n): "x" * 50} for n in range(50_000)]}}
REPEATS = {"input": "the", "tools": [TOOL], "tool_choice": "none", "max_output_tokens": 4}
SCORES: dict[str, Any] = {"top_logprobs": 20, "max_output_tokens": 900, "ignore_eos": True}


def message(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


# Path, body and the status of the answer; a body of None is a GET.
LARGEST: dict[str, tuple[str, dict[str, Any] | None, int]] = {
    "prompt": (TEXT, {"prompt": "the dog " * (MOST // 8)}, 400),
    "prompt of escapes": (TEXT, {"prompt": "\U0001f600" * (MOST // 13)}, 400),
    "ids": (TEXT, {"prompt": [300] * 262_000}, 400),
    "messages": (CHAT, {"messages": message("a" * 1900)["messages"] * 2048}, 400),
    "a message": (CHAT, message("the dog " * (MOST // 8)), 400),
    "tokenize": ("/tokenize", {"prompt": words(MOST // 6)}, 200),
    "strings of tokens": ("/tokenize", STRINGS, 200),
    "tokenize messages": ("/tokenize", message("the dog " * (MOST // 8)), 200),
    "detokenize": ("/detokenize", {"tokens": list(range(400)) * 650}, 200),
    "scores": (TEXT, {"prompt": "the dog " * 16, **LOGPROBS}, 200),
    "scores of a prompt": (TEXT, ECHO, 200),
    "scores of a stream": (TEXT, {"prompt": "the", "stream": True, **LOGPROBS}, 200),
    "a response repeats": (RESPONSES, REPEATS | {"store": False}, 200),
    "a stream repeats": (RESPONSES, REPEATS | {"stream": True}, 200),
    "scores of a response": (RESPONSES, {"input": "the", "stream": True, **SCORES}, 200),
    "openapi": ("/openapi.json", None, 200),
    "metrics": ("/metrics", None, 200),
    "models": ("/v1/models", None, 200),
    "tokenizer": ("/tokenizer_info", None, 200),
}  # fmt: skip


# In a process of its own: what a client does should not count.
_CLIENT = """
import sys, http.client
host, method, path = sys.argv[1:]
headers = {"Content-Type": "application/json"}
connection = http.client.HTTPConnection(host, timeout=120)
connection.request(method, path, sys.stdin.buffer.read() or None, headers)
answer = connection.getresponse()
while answer.read(2**20):
    pass
print(answer.status)
"""


def ask(url: str, model: str, name: str) -> None:
    """One of them; raises ValueError where the answer has another status."""
    path, body, status = LARGEST[name]
    content, method = b"", "GET"
    if body is not None:
        method = "POST"
        asked = json.dumps({"model": model} | body, ensure_ascii="escapes" in name)
        content = asked.encode()
    command = [sys.executable, "-c", _CLIENT, url.removeprefix("http://"), method, path]
    done = subprocess.run(command, input=content, capture_output=True, timeout=120, check=True)
    if int(done.stdout) != status:
        raise ValueError(f"{name}: the status is {done.stdout.decode().strip()}, wanted {status}")
