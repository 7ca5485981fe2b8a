"""/v1/messages: Anthropic's API, a translation to the body of a chat and of its answer."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.api import chat, endpoint, sse
from serve.api.choices import Choice
from serve.dialects.asking import asked, checked
from serve.dialects.blocks import Block, Blocks, Step
from serve.http.errors import ApiError
from serve.schemas.messages import (
    CountRequest,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
    TurnsFields,
)
from serve.service import Model

Event = dict[str, Any]
_PING_SECONDS = 10.0  # without another event


async def create(request: Request) -> Response:
    """Answer a conversation."""
    return await endpoint.answered(request, MessagesRequest, _prepared, Reply)


async def count_tokens(request: Request) -> Response:
    """How many tokens its prompt has."""
    fields = await endpoint.read(request, CountRequest)
    model = endpoint.model(request.app.state.service, fields.model)

    def count() -> int:
        try:
            conversation = checked({"model": fields.model, **_chat(fields)})
            return len(chat.prompt_of(model, conversation).ids)
        except ApiError as error:
            raise error.renamed(fields.names) from None

    return JSONResponse({"input_tokens": await endpoint.work(request, count)})


def _prepared(model: Model, tenant: str, fields: MessagesRequest, most: int) -> list[Choice]:
    return asked(model, tenant, fields.sampling() | _chat(fields), most)


def _chat(fields: TurnsFields) -> dict[str, Any]:
    """The body of the same chat, but for how tokens are chosen."""
    messages = [message for turn in fields.messages for message in _messages(turn)]
    if fields.system:
        messages.insert(0, {"role": "system", "content": fields.system})
    body: dict[str, Any] = {"messages": messages}
    if fields.messages[-1].role == "assistant":  # the answer goes on where it ends
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    if fields.tools:
        body["tools"] = [tool.chat() for tool in fields.tools]
    if choice := fields.tool_choice:
        named = {"type": "function", "function": {"name": choice.name or ""}}
        body["tool_choice"] = {"any": "required", "tool": named}.get(choice.type, choice.type)
        body["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if fields.thinking and fields.thinking.type != "adaptive":
        body["enable_thinking"] = fields.thinking.type == "enabled"
    if fields.form:
        schema = {"name": "answer", "schema": fields.form.schema_}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _messages(turn: Turn) -> Iterator[dict[str, Any]]:
    """A turn's blocks as messages: one, but that each result of a tool is one of its own."""
    made: dict[str, Any] = {"role": turn.role}
    for block in turn.content:
        match block:
            case ToolResultBlock():
                if len(made) > 1:
                    yield made
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.content}
                made = {"role": turn.role}
            case TextBlock():
                made["content"] = made.get("content", "") + block.text
            case ThinkingBlock():
                made["reasoning_content"] = made.get("reasoning_content", "") + block.thinking
            case ToolUseBlock():
                arguments = json.dumps(block.input, ensure_ascii=False)
                function = {"name": block.name, "arguments": arguments}
                call = {"id": block.id, "type": "function", "function": function}
                made.setdefault("tool_calls", []).append(call)
    if len(made) > 1 or not turn.content:
        yield made if len(made) > 1 else made | {"content": ""}


class Reply(sse.Reply):
    """One message, written event by event; whole, it is what the events make."""

    named: bool = True
    end: str = ""

    def __init__(self, model: Model, fields: MessagesRequest, choices: list[Choice]):
        (self._choice,) = choices
        self._blocks, self._content = Blocks(), list[dict[str, Any]]()
        self._stops = fields.stop or ()
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model.name,
        }

    async def whole(self, working: sse.Working) -> Callable[[], dict[str, Any]]:
        async for _ in self.events(working):
            pass
        return self._message

    async def events(self, working: sse.Working) -> AsyncIterator[Event]:
        """Each block begins, grows and ends before the next; a ping where nothing happens long."""
        yield {"type": "message_start", "message": self._message()}
        yield {"type": "ping"}
        async for gained in _or_pings(working):
            if gained is None:
                yield {"type": "ping"}
                continue
            for piece in gained[1].pieces:
                for event in self._told(self._blocks.push(piece)):
                    yield event
        for event in self._told(self._blocks.end()):
            yield event
        yield {"type": "message_delta", "delta": self._reason(), "usage": self._usage()}
        yield {"type": "message_stop"}

    def fault(self, error: ApiError) -> Event:
        return error.form("/v1/messages")

    def _told(self, steps: Iterator[tuple[Step, Block, str]]) -> Iterator[Event]:
        for step, block, text in steps:
            if step == "begun":
                yield _event("start", block, content_block=_shown(block))
            elif step == "gained":
                yield _event("delta", block, delta=_delta(block, text))
            else:
                self._content.append(shown := _shown(block))
                if block.kind == "thought":
                    signed = {"type": "signature_delta", "signature": shown["signature"]}
                    yield _event("delta", block, delta=signed)
                yield _event("stop", block)

    def _message(self) -> dict[str, Any]:
        return {**self._head, "content": self._content, **self._reason(), "usage": self._usage()}

    def _reason(self) -> dict[str, Any]:
        """Why it ended, and by which of the client's texts."""
        finish, answer = self._choice.finish, self._choice.answer
        reason = {"stop": "end_turn", "length": "max_tokens"}.get(finish)
        met = answer.stop if finish == "stop" and answer.stop in self._stops else None
        if finish == "stop" and (met or answer.called):
            reason = "stop_sequence" if met else "tool_use"
        return {"stop_reason": reason, "stop_sequence": met}

    def _usage(self) -> dict[str, Any]:
        usage: Any = endpoint.usage([self._choice])
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }


async def _or_pings(working: sse.Working) -> AsyncIterator[Any]:
    """What comes, and None where nothing has come for long."""
    while True:
        coming = asyncio.ensure_future(anext(working, None))
        try:
            while not (await asyncio.wait([coming], timeout=_PING_SECONDS))[0]:
                yield None
        finally:
            if not coming.done():
                coming.cancel()
        if (gained := coming.result()) is None:
            return
        yield gained


def _event(what: str, block: Block, **fields: Any) -> Event:
    return {"type": f"content_block_{what}", "index": block.place, **fields}


def _delta(block: Block, text: str) -> dict[str, Any]:
    match block.kind:
        case "thought":
            return {"type": "thinking_delta", "thinking": text}
        case "text":
            return {"type": "text_delta", "text": text}
        case _:
            return {"type": "input_json_delta", "partial_json": text}


def _shown(block: Block) -> dict[str, Any]:
    text = block.text
    match block.kind:
        case "thought":
            signature = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() if text else ""
            return {"type": "thinking", "thinking": text, "signature": signature}
        case "text":
            return {"type": "text", "text": text}
        case _:
            head = {"type": "tool_use", "id": f"toolu_{block.id[:24]}", "name": block.name}
            return head | {"input": _input(text)}


def _input(arguments: str) -> dict[str, Any]:
    """Arguments as the object that they are; what was cut is under a name of its own."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": arguments}
