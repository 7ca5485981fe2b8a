"""The order of events in each dialect's streams, written down as grammars."""

import json
import re
from typing import Any

import httpx

# Responses: an item of the output ends before the next begins.
TEXT = r"(item\+ part\+ (text~ )*text\. part- item- )"
THOUGHT = r"(item\+ part\+ (thought~ )*thought\. part- item- )"
CALL = r"(item\+ (call~ )*call\. item- )"
RESPONSES = re.compile(
    rf"created in_progress ({TEXT}|{THOUGHT}|{CALL})*(completed|incomplete|failed)"
)
# Messages: blocks in a row, each begun, grown and ended.
BLOCK = r"(start ({}~ )*{}stop )"
MESSAGES = re.compile(
    rf"begun ping ({BLOCK.format('text', '')}|{BLOCK.format('thought', 'signed ')}"
    rf"|{BLOCK.format('call', '')})*why end"
)
_SHORT = {
    "output_item.added": "item+",
    "output_item.done": "item-",
    "content_part.added": "part+",
    "content_part.done": "part-",
    "output_text.delta": "text~",
    "output_text.done": "text.",
    "reasoning_text.delta": "thought~",
    "reasoning_text.done": "thought.",
    "function_call_arguments.delta": "call~",
    "function_call_arguments.done": "call.",
    "message_start": "begun",
    "message_delta": "why",
    "message_stop": "end",
    "content_block_start": "start",
    "content_block_stop": "stop",
    "text_delta": "text~",
    "thinking_delta": "thought~",
    "input_json_delta": "call~",
    "signature_delta": "signed",
}


def parsed(arguments: str) -> Any:
    """Of a call that was cut: what of it there is, as Messages has it."""
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return {"INVALID_JSON": arguments}


def sent(url: str, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, object) of each event of a stream."""
    found, name = [], ""
    with httpx.stream("POST", url, json=body | {"stream": True}, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and line != "data: [DONE]":
                found.append((name, json.loads(line.removeprefix("data: "))))
    return found


def check_chat(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer that a stream makes; a delta holds content or a call, never both."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": []}
    *said, last = events
    assert last["choices"] == []
    for event in said:
        (choice,) = event["choices"]
        delta = choice["delta"]
        assert not (delta.get("content") and delta.get("tool_calls"))
        message["content"] += delta.get("content") or ""
        if thought := delta.get("reasoning_content"):
            message["reasoning_content"] = message.get("reasoning_content", "") + thought
        for piece in delta.get("tool_calls", ()):
            if "id" in piece:
                assert piece["index"] == len(message["tool_calls"])
                message["tool_calls"].append(piece)
            else:
                gained = piece["function"]["arguments"]
                message["tool_calls"][piece["index"]]["function"]["arguments"] += gained
    finish = said[-1]["choices"][0]["finish_reason"]
    choices = [{"message": message, "finish_reason": finish}]
    return {"choices": choices, "usage": last["usage"]}


def check_responses(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that a stream ends with; its order, numbers and pieces fit together."""
    names = [event["type"].removeprefix("response.") for event in events]
    assert RESPONSES.fullmatch(" ".join(_SHORT.get(name, name) for name in names)), names
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[-1]["response"]
    items: list[Any] = []
    for event in events:
        if event["type"] == "response.output_item.added":
            assert event["output_index"] == len(items)
            items.append({"id": event["item"]["id"], "pieces": ""})
        if "item_id" in event:
            assert event["item_id"] == items[event["output_index"]]["id"]
        if event["type"].endswith(".delta"):
            items[-1]["pieces"] += event["delta"]
        if event["type"].endswith((".text.done", "_text.done", "arguments.done")):
            assert items[-1]["pieces"] == event.get("text", event.get("arguments"))
        if event["type"] == "response.output_item.done":
            assert event["item"] == response["output"][event["output_index"]]
    assert len(items) == len(response["output"])
    return response


def check_messages(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream makes; its order and places fit together."""
    names = [event.get("delta", {}).get("type", event["type"]) for event in events]
    pings = [place for place, name in enumerate(names) if name == "ping"][1:]
    shown = [_SHORT.get(name, name) for place, name in enumerate(names) if place not in pings]
    assert MESSAGES.fullmatch(" ".join(shown)), names
    message = events[0]["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"] | {"partial": ""})
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(message["content"]) - 1
            ((name, text),) = ((k, v) for k, v in event["delta"].items() if k != "type")
            block = message["content"][-1]
            block[name.replace("partial_json", "partial")] += text
    for block in message["content"]:
        if (text := block.pop("partial")) or block["type"] == "tool_use":
            block["input"] = parsed(text)
    return message | events[-2]["delta"] | {"usage": events[-2]["usage"]}
