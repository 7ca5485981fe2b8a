"""POST /v1/chat/completions."""

import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve.api import endpoint, formats, logprobs, prompting, sse
from serve.api.choices import Choice, choices_of
from serve.api.prompting import Prompt, Tools
from serve.api.window import check_messages
from serve.http.errors import ApiError
from serve.schemas.conversation import FunctionName, ToolName
from serve.schemas.requests import ChatRequest
from serve.service import Model
from serve.text.answer import Part, Token
from serve.text.calls import new_id
from serve.text.grammar import Unusable
from serve.text.message import Gathered, Message


async def complete(request: Request) -> Response:
    """Answer a conversation."""
    return await endpoint.answered(request, ChatRequest, prepared, Reply)


def prepared(model: Model, tenant: str, fields: ChatRequest, most: int) -> list[Choice]:
    """What the engine is asked for."""
    check_messages(model, fields.said())
    prompt = prompt_of(model, fields)
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


def prompt_of(model: Model, fields: ChatRequest) -> Prompt:
    """The prompt of a conversation; raises a 400 where there can be none."""
    blamed = "functions" if fields.functions else "tools"
    tools = dataclasses.replace(tools_of(fields), field=blamed)
    form = formats.form_of(fields)
    try:
        return prompting.chat(model, fields.said(), tools, fields.thinking, form, fields.ending)
    except Unusable as error:
        raise ApiError(400, f"{blamed} cannot be used: {error}", blamed) from None
    except ValueError as error:
        raise ApiError(400, str(error), "messages") from None


def tools_of(fields: ChatRequest) -> Tools:
    """Functions in either form, and which of them must be called."""
    described = [tool.shown() for tool in fields.tools or ()]
    functions = [tool["function"] for tool in described]
    if fields.functions:
        functions = [function.shown() for function in fields.functions]
    choice = fields.tool_choice if fields.tools else fields.function_call
    parallel = not fields.functions and fields.parallel_tool_calls is not False
    if choice == "none":
        return Tools()
    if choice == "required":
        return Tools(functions, functions, parallel, described=described)
    if isinstance(choice, ToolName | FunctionName):
        name = choice.name if isinstance(choice, FunctionName) else choice.function.name
        chosen = [f for f in functions if name in (f.get("name"), f.get("name_for_model"))]
        if not chosen:
            field = "tool_choice" if fields.tools else "function_call"
            raise ApiError(400, f"{field} names {name!r}, which was not sent", field)
        return Tools(functions, chosen, parallel=False, described=described)
    return Tools(functions, parallel=parallel, described=described)


def _reasoning(message: Message) -> dict[str, Any]:
    """Under both of the names that clients know."""
    return {"reasoning_content": message.reasoning, "reasoning": message.reasoning}


class Reply(sse.Reply):
    """The answers to one conversation in the form of OpenAI's API."""

    def __init__(self, model: Model, fields: ChatRequest, choices: list[Choice]):
        self._model, self._fields, self._choices = model, fields.without_texts(), choices
        self._functions = bool(fields.functions)  # calls have the older form
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model.name,
        }

    async def whole(self, working: AsyncIterator[tuple[int, Part]]) -> Callable[[], dict[str, Any]]:
        """What makes one object with everything; that may take long."""
        gathered = [Gathered() for _ in self._choices]
        tokens: list[list[Token]] = [[] for _ in self._choices]
        ids: list[list[int]] = [[] for _ in self._choices]
        async for index, part in working:
            tokens[index] += part.tokens
            ids[index] += part.ids
            gathered[index].add(part.message)
        return lambda: {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": index,
                    "message": self._message(message),
                    "logprobs": self._logprobs(tokens[index]),
                    "finish_reason": self._finish(index),
                    **endpoint.answer_ids(self._fields, ids[index]),
                }
                for index, message in enumerate(each.message() for each in gathered)
            ],
            "usage": endpoint.usage(self._choices),
            **endpoint.prompt_ids(self._fields, self._choices[0]),
        }

    async def events(
        self, working: AsyncIterator[tuple[int, Part]]
    ) -> AsyncIterator[dict[str, Any]]:
        """Chunks: first the roles, then what is new, at last why each choice ended."""
        for index, choice in enumerate(self._choices):
            first = self._chunk(index, {"role": "assistant", "content": ""})
            yield first | endpoint.prompt_ids(self._fields, choice)
        async for index, part in working:
            scores = self._logprobs(part.tokens) if part.tokens else None
            ids = endpoint.answer_ids(self._fields, part.ids)
            for delta in self._deltas(part.message) or [{}]:
                if delta or scores or ids:
                    yield self._chunk(index, delta, scores, ids=ids)
                scores, ids = None, {}  # once, with the first
            if part.finish:
                yield self._chunk(index, {}, finish=self._finish(index))
        if event := endpoint.last_event(self._fields, self._event(), self._choices):
            yield event

    def _event(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
        ids: Mapping[str, list[int]] = MappingProxyType({}),
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        choice |= ids
        usage = endpoint.usage_so_far(self._fields, self._choices)
        return {**self._event(), "choices": [choice], **usage}

    def _deltas(self, gained: Message) -> list[dict[str, Any]]:
        """Each with a thought, content or a call, never two of them."""
        made: list[dict[str, Any]] = [_reasoning(gained)] if gained.reasoning else []
        if gained.content:
            made.append({"content": gained.content})
        for index, call in gained.calls.items():
            function = {"name": call.name} if call.name else {}
            function["arguments"] = call.arguments
            head = {"id": new_id(), "type": "function"} if call.name else {}
            if self._functions:
                made.append({"function_call": function})
            else:
                made.append({"tool_calls": [{"index": index, **head, "function": function}]})
        return made

    def _message(self, message: Message) -> dict[str, Any]:
        made: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
        if message.reasoning:
            made |= _reasoning(message)
        calls = [dataclasses.asdict(call) for call in message.calls.values()]
        if self._functions:
            return {**made, "function_call": calls[0] if calls else None}
        if calls:
            made["content"] = message.content or None
            made["tool_calls"] = [
                {"id": new_id(), "type": "function", "function": call} for call in calls
            ]
        return made

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        return logprobs.of_chat(self._model.tokenizer, tokens) if self._fields.logprobs else None

    def _finish(self, index: int) -> str:
        choice = self._choices[index]
        if choice.answer.called and choice.finish == "stop":
            return "function_call" if self._functions else "tool_calls"
        return choice.finish
