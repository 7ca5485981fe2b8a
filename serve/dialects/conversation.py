"""From the items of the Responses API to the messages of a chat."""

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from serve.api import chat
from serve.api.choices import Choice
from serve.http.errors import ApiError
from serve.schemas.requests import ChatRequest
from serve.schemas.responses import CalledFunction, CallOutput, InputMessage, Thought
from serve.service import Model


def messages_of(items: Iterable[Any]) -> list[dict[str, Any]]:
    """What an assistant thought, said and called in a row is one message."""
    made: list[dict[str, Any]] = []
    for item in items:
        match item:
            case CallOutput():
                made.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
            case InputMessage(role="assistant"):
                message = _assistant(made, lambda m: "content" not in m or "tool_calls" in m)
                message["content"] = message.get("content", "") + item.content
            case InputMessage():
                made.append({"role": item.role, "content": item.content})
            case Thought():
                message = _assistant(made, lambda m: m.keys() == {"role", "reasoning_content"})
                message["reasoning_content"] = message.get("reasoning_content", "") + item.text
            case CalledFunction():
                message = _assistant(made, lambda m: True)
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
    return made


def _assistant(
    made: list[dict[str, Any]], goes_on: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The message that goes on, or a new one."""
    if not made or made[-1]["role"] != "assistant" or not goes_on(made[-1]):
        made.append({"role": "assistant"})
    return made[-1]


def sealed(thought: str) -> str:
    """A thought for clients that keep it unread, and send it back."""
    return base64.b64encode(thought.encode("utf-8", "replace")).decode()


def asked(
    model: Model, tenant: str, body: dict[str, Any], most: int, truncated: bool
) -> list[Choice]:
    """What the engine is asked for by the body of a chat.

    truncated: turns are left out from the beginning where there are too many for the window.
    """
    ask = lambda messages: chat.prepared(
        model, tenant, ChatRequest.model_validate(body | {"messages": messages}), most
    )
    messages: Sequence[dict[str, Any]] = body["messages"]
    if not truncated:
        return ask(messages)
    system = [message for message in messages if message["role"] in ("system", "developer")]
    said = [message for message in messages if message["role"] not in ("system", "developer")]
    starts = [place for place, message in enumerate(said) if message["role"] == "user"] or [0]

    def without(turns: int) -> list[Choice] | None:
        try:
            return ask([*system, *said[starts[turns] if turns else 0 :]])
        except ApiError as error:
            if error.code != "context_length_exceeded":
                raise
            return None

    least, most_turns, found = 1, len(starts) - 1, without(0)
    if found is not None:
        return found
    while least <= most_turns:
        middle = (least + most_turns) // 2
        if choices := without(middle):
            found, most_turns = choices, middle - 1
        else:
            least = middle + 1
    return found or ask(messages)  # which raises
