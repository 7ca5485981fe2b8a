import json

import pytest

from serve.cli.client import ServerError, Stream

CHUNKS = [
    {"choices": [{"delta": {"role": "assistant"}, "finish_reason": None}]},
    {"choices": [{"delta": {"reasoning_content": "h"}, "finish_reason": None}]},
    {"choices": [{"delta": {"reasoning_content": "m"}, "finish_reason": None}]},
    {"choices": [{"delta": {"content": "你\u2028"}, "finish_reason": None}]},
    {"choices": [{"text": "b", "finish_reason": "stop"}]},
    {"choices": [], "usage": {"completion_tokens": 2}},
]
LINES = [": a comment", *(f"data: {json.dumps(c, ensure_ascii=False)}" for c in CHUNKS)]


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_in_any_pieces(end: str, size: int) -> None:
    data = end.join([*LINES, "data:[DONE]", ""]).encode()
    stream, texts = Stream(), []
    for at in range(0, len(data), size):
        texts += stream.push(data[at : at + size])
    stream.finish()
    assert texts == ["<think>\nh", "m", "\n</think>\n\n你\u2028", "b"]
    assert (stream.finish_reason, stream.usage) == ("stop", {"completion_tokens": 2})


def test_a_stream_that_ends_early() -> None:
    stream = Stream()
    stream.push("\n\n".join([*LINES, ""]).encode())
    with pytest.raises(ServerError, match="lost before the answer was whole"):
        stream.finish()


@pytest.mark.parametrize(
    "event", ["{", "[]", "{}", '{"choices": [{}]}', '{"error": 3}', '"choices"']
)
def test_what_is_no_answer(event: str) -> None:
    with pytest.raises(ServerError, match="got an event that is no chunk"):
        Stream().push(f"data: {event}\n".encode())
