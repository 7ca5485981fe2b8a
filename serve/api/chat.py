"""POST /v1/chat/completions."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve import prompting
from serve.answer import Part, Token
from serve.api import intake, scores
from serve.api.asking import Choice, choices_of, constraint_of
from serve.api.errors import ApiError, parse
from serve.api.fields import ChatRequest, FunctionName, ToolName
from serve.api.streams import EventStream, parts, until_gone
from serve.prompting import Tools
from serve.service import Model, Service
from serve.tools.calls import Delta, Message, new_id


async def complete(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    service: Service = request.app.state.service
    fields = parse(ChatRequest, await intake.body(request))
    model = intake.model(service, fields.model)
    choices = await asyncio.to_thread(
        prepared, model, request.state.tenant, fields, service.settings.max_choices
    )
    reply = Reply(model, fields, choices)
    ticket = intake.queue(request, model, choices)
    working = parts(ticket, choices, service.settings.request_seconds)
    if fields.stream:
        return EventStream(ticket, lambda: reply.events(working))
    try:
        return JSONResponse(await until_gone(request.receive, reply.whole(working)))
    finally:
        ticket.close()


def prepared(model: Model, tenant: str, fields: ChatRequest, most: int) -> list[Choice]:
    """What the engine is asked for; off the event loop, since texts may be long."""
    tools = tools_of(fields)
    messages = [message.model_dump(exclude_none=True) for message in fields.messages]
    thinking = fields.enable_thinking
    if fields.chat_template_kwargs is not None:
        thinking = fields.chat_template_kwargs.enable_thinking
    try:
        prompt = prompting.chat(model, messages, tools, thinking)
    except ValueError as error:
        raise ApiError(400, str(error), "messages") from None
    constraint = constraint_of(model, fields.response_format)
    if constraint is not None:
        if tools.functions:
            raise ApiError(400, "response_format cannot go with tools", "response_format")
        prompt = prompting.constrained(prompt, constraint)
    wanted = fields.max_completion_tokens
    return choices_of(
        model,
        tenant,
        [prompt],
        fields,
        fields.max_tokens if wanted is None else wanted,
        (fields.top_logprobs or 0) if fields.logprobs else None,
        most=most,
    )


def tools_of(fields: ChatRequest) -> Tools:
    """Functions in either form, and which of them must be called."""
    given = fields.functions or [tool.function for tool in fields.tools or ()]
    functions = [function.model_dump(exclude_none=True) for function in given]
    choice = fields.tool_choice if fields.tools else fields.function_call
    if choice == "none":
        return Tools()
    if choice == "required":
        return Tools(functions, functions)
    if isinstance(choice, ToolName | FunctionName):
        name = choice.name if isinstance(choice, FunctionName) else choice.function.name
        chosen = [f for f in functions if name in (f.get("name"), f.get("name_for_model"))]
        if not chosen:
            raise ApiError(400, f"tool_choice names {name!r}, which is none of the tools")
        return Tools(functions, chosen)
    return Tools(functions)


class Reply:
    """The answers to one conversation in the form of OpenAI's API."""

    def __init__(self, model: Model, fields: ChatRequest, choices: list[Choice]):
        self._model, self._fields, self._choices = model, fields, choices
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model.name,
        }

    async def whole(self, working: AsyncIterator[tuple[int, Part]]) -> dict[str, Any]:
        """One object with everything."""
        messages = [Message() for _ in self._choices]
        tokens: list[list[Token]] = [[] for _ in self._choices]
        async for index, part in working:
            tokens[index] += part.tokens
            for delta in self._read(index, part):
                messages[index].add(delta)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": index,
                    "message": self._message(message),
                    "logprobs": self._logprobs(tokens[index]),
                    "finish_reason": self._finish(index),
                }
                for index, message in enumerate(messages)
            ],
            "usage": intake.usage(self._choices),
        }

    async def events(
        self, working: AsyncIterator[tuple[int, Part]]
    ) -> AsyncIterator[dict[str, Any]]:
        """Chunks: first the roles, then what is new, at last why each choice ended."""
        for index in range(len(self._choices)):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for index, part in working:
            deltas = self._read(index, part)
            logprobs = self._logprobs(part.tokens) if part.tokens else None
            for place, delta in enumerate(deltas or ([Delta()] if logprobs else [])):
                yield self._chunk(index, self._delta(index, delta), logprobs if not place else None)
            if part.finish:
                yield self._chunk(index, {}, finish=self._finish(index))
        options = self._fields.stream_options
        if options is not None and options.include_usage:
            yield {**self._event(), "choices": [], "usage": intake.usage(self._choices)}

    def _read(self, index: int, part: Part) -> list[Delta]:
        parser = self._choices[index].parser
        deltas = parser.push(part.text)
        return [*deltas, *parser.finish()] if part.finish else deltas

    def _event(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._event(), "choices": [choice]}

    def _delta(self, index: int, delta: Delta) -> dict[str, Any]:
        made: dict[str, Any] = {"content": delta.content} if delta.content else {}
        if delta.call is None:
            return made
        function = {"name": delta.name} if delta.name else {}
        function["arguments"] = delta.arguments
        if self._fields.functions:
            return {**made, "function_call": function}
        call: dict[str, Any] = {"index": delta.call, "function": function}
        if delta.name:
            call |= {"id": new_id(), "type": "function"}
        return {**made, "tool_calls": [call]}

    def _message(self, message: Message) -> dict[str, Any]:
        made: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
        if self._fields.functions:
            return {**made, "function_call": message.calls[0] if message.calls else None}
        if message.calls:
            made["content"] = message.content or None
            made["tool_calls"] = [
                {"id": new_id(), "type": "function", "function": call} for call in message.calls
            ]
        return made

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        return scores.of_chat(self._model.tokenizer, tokens) if self._fields.logprobs else None

    def _finish(self, index: int) -> str:
        choice = self._choices[index]
        if choice.parser.called and choice.finish == "stop":
            return "function_call" if self._fields.functions else "tool_calls"
        return choice.finish
