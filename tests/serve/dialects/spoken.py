"""One conversation as clients of each dialect write it, and answers as they read them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.serve.dialects.events import check_chat, check_messages, check_responses, parsed
from tests.serve.text.test_tools import TIME, WEATHER

LIMIT = 150
SCHEMA = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}
Body = dict[str, Any]


@dataclass(frozen=True)
class Dialect:
    """Where it is spoken, how a conversation is written, an answer read, and the next turn said."""

    path: str
    body: Callable[[Any], Body]
    read: Callable[[Any], Any]  # thought, text, calls, tokens read and written
    whole: Callable[[list[Any]], Any]  # the answer that a stream of events makes
    further: Callable[[Body, Any, str], Body]  # after an answer: its calls' results, and a question


def _listed(text: str, kind: str, parts: bool) -> Any:
    """A text, whole or in two parts."""
    return [{"type": kind, "text": one} for one in (text[:1], text[1:])] if parts else text


def _calls(called: Any) -> list[Any]:
    return [(f"c{place}", name, arguments) for place, (name, arguments) in enumerate(called)]


# --- chat ---------------------------------------------------------------------------------------
def chat(said: Any) -> Body:
    content = lambda text: _listed(text, "text", said["parts"])
    turns = [{"role": "system", "content": content(said["system"])}] if said["system"] else []
    for question, thought, text, called in said["turns"]:
        turns.append({"role": "user", "content": content(question)})
        answer: Body = {"role": "assistant", "content": content(text) if text else None}
        if thought:
            answer["reasoning_content"] = thought
        functions = [
            (id, {"name": name, "arguments": json.dumps(given)})
            for id, name, given in _calls(called)
        ]
        if functions:
            answer["tool_calls"] = [
                {"id": id, "type": "function", "function": one} for id, one in functions
            ]
        turns.append(answer)
        turns += [{"role": "tool", "tool_call_id": id, "content": "4"} for id, _ in functions]
    turns.append({"role": "user", "content": said["last"]})
    body: Body = {"messages": turns, "max_tokens": LIMIT, **said["sampling"]}
    if said["stop"]:
        body["stop"] = said["stop"]
    if said["tools"]:
        body["tools"] = [{"type": "function", "function": one} for one in (WEATHER, TIME)]
        choice = said["choice"]
        named = {"type": "function", "function": {"name": choice}}
        body["tool_choice"] = named if choice == "weather" else choice
        body["parallel_tool_calls"] = said["parallel"]
    thinking: dict[str, Body] = {
        "usual": {},
        "off": {"enable_thinking": False},
        "none": {"reasoning_effort": "none"},
        "high": {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}},
    }
    body |= thinking[said["thinking"]]
    if said["schema"] is not None:
        form = {"name": "x", "schema": SCHEMA, "strict": said["schema"]}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def of_chat(made: Any) -> Any:
    message = made["choices"][0]["message"]
    called = [call["function"] for call in message.get("tool_calls") or ()]
    return (
        message.get("reasoning_content", ""),
        message["content"] or "",
        [(call["name"], parsed(call["arguments"])) for call in called],
        made["usage"]["prompt_tokens"],
        made["usage"]["completion_tokens"],
    )


def further_chat(body: Body, made: Any, question: str) -> Body:
    message = made["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "5"}
        for call in message.get("tool_calls") or ()
    ]
    new = [message, *results, {"role": "user", "content": question}]
    return body | {"messages": [*body["messages"], *new]}


# --- Responses ----------------------------------------------------------------------------------
def responses(said: Any) -> Body:
    items: list[Any] = []
    for question, thought, text, called in said["turns"]:
        content = _listed(question, "input_text", said["parts"])
        items.append({"role": "user", "content": content})
        if thought:
            part = {"type": "reasoning_text", "text": thought}
            items.append({"type": "reasoning", "summary": [], "content": [part]})
        if text:
            part = {"type": "output_text", "text": text, "annotations": []}
            items.append({"type": "message", "role": "assistant", "content": [part]})
        calls = _calls(called)
        for id, name, given in calls:
            call = {"type": "function_call", "call_id": id, "name": name}
            items.append(call | {"arguments": json.dumps(given)})
        items += [
            {"type": "function_call_output", "call_id": id, "output": "4"} for id, _, _ in calls
        ]
    items.append({"role": "user", "content": [{"type": "input_text", "text": said["last"]}]})
    body: Body = {"input": items, "max_output_tokens": LIMIT, **said["sampling"]}
    if said["stop"]:
        body["stop"] = said["stop"]
    body["instructions"] = said["system"] or None
    if said["tools"]:
        body["tools"] = [{"type": "function", **one} for one in (WEATHER, TIME)]
        choice = said["choice"]
        named = {"type": "function", "name": choice}
        body["tool_choice"] = named if choice == "weather" else choice
        body["parallel_tool_calls"] = said["parallel"]
    if said["thinking"] != "usual":
        effort = "high" if said["thinking"] == "high" else "none"
        body["reasoning"] = {"effort": effort, "summary": "auto"}
    if said["schema"] is not None:
        form = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": said["schema"]}
        body["text"] = {"format": form}
    return body


def of_responses(made: Any) -> Any:
    items = made["output"]
    texts = lambda kind: "".join(
        item["content"][0]["text"] for item in items if item["type"] == kind
    )
    called = [item for item in items if item["type"] == "function_call"]
    return (
        texts("reasoning"),
        texts("message"),
        [(call["name"], parsed(call["arguments"])) for call in called],
        made["usage"]["input_tokens"],
        made["usage"]["output_tokens"],
    )


def further_responses(body: Body, made: Any, question: str) -> Body:
    """The server has kept what was said."""
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "5"}
        for item in made["output"]
        if item["type"] == "function_call"
    ]
    new = [*results, {"role": "user", "content": question}]
    return body | {"previous_response_id": made["id"], "input": new}


# --- Messages -----------------------------------------------------------------------------------
def messages(said: Any) -> Body:
    turns: list[Any] = []
    for question, thought, text, called in said["turns"]:
        turns.append({"role": "user", "content": _listed(question, "text", said["parts"])})
        blocks: list[Any] = []
        if thought:
            blocks.append({"type": "thinking", "thinking": thought, "signature": "x"})
        if text:
            blocks.append({"type": "text", "text": text})
        calls = _calls(called)
        blocks += [
            {"type": "tool_use", "id": id, "name": name, "input": given}
            for id, name, given in calls
        ]
        turns.append({"role": "assistant", "content": blocks})
        if calls:
            results = [
                {"type": "tool_result", "tool_use_id": id, "content": "4"} for id, _, _ in calls
            ]
            turns.append({"role": "user", "content": results})
    turns.append({"role": "user", "content": said["last"]})
    body: Body = {"messages": turns, "max_tokens": LIMIT, **said["sampling"]}
    if said["stop"]:
        body["stop_sequences"] = said["stop"]
    body["system"] = _listed(said["system"], "text", said["parts"]) or None
    if said["tools"]:
        body["tools"] = [
            {{"parameters": "input_schema"}.get(name, name): one[name] for name in one}
            for one in (WEATHER, TIME)
        ]
        kinds = {None: "auto", "required": "any", "weather": "tool"}
        choice = {"type": kinds.get(said["choice"], said["choice"])}
        if said["choice"] == "weather":
            choice["name"] = "weather"
        body["tool_choice"] = choice | {"disable_parallel_tool_use": not said["parallel"]}
    if said["thinking"] != "usual":
        on = {"type": "enabled", "budget_tokens": 1024}
        body["thinking"] = on if said["thinking"] == "high" else {"type": "disabled"}
    if said["schema"] is not None:
        form = {"type": "json_schema", "schema": SCHEMA}
        body |= {"output_config": {"format": form}} if said["schema"] else {"output_format": form}
    return body


def of_messages(made: Any) -> Any:
    texts = lambda kind: "".join(block.get(kind, "") for block in made["content"])
    called = [block for block in made["content"] if block["type"] == "tool_use"]
    usage = made["usage"]
    return (
        texts("thinking"),
        texts("text"),
        [(call["name"], call["input"]) for call in called],
        usage["input_tokens"] + usage["cache_read_input_tokens"],
        usage["output_tokens"],
    )


def further_messages(body: Body, made: Any, question: str) -> Body:
    """Results and question are one turn, as Anthropic's clients have it."""
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "5"}
        for block in made["content"]
        if block["type"] == "tool_use"
    ]
    content = [*results, {"type": "text", "text": question}]
    new = [{"role": "assistant", "content": made["content"]}, {"role": "user", "content": content}]
    return body | {"messages": [*body["messages"], *new]}


CHAT = Dialect("/v1/chat/completions", chat, of_chat, check_chat, further_chat)
DIALECTS = (
    CHAT,
    Dialect("/v1/responses", responses, of_responses, check_responses, further_responses),
    Dialect("/v1/messages", messages, of_messages, check_messages, further_messages),
)
