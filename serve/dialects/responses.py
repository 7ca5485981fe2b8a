"""/v1/responses: OpenAI's newer API, a translation to the body of a chat and of its answer."""

import json
from collections.abc import Callable, Iterable
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.api import endpoint
from serve.api.choices import Choice
from serve.dialects.asking import asked, asked_truncated
from serve.dialects.output import Reply, echo_of, new_id
from serve.http.errors import ApiError, shown
from serve.http.rendering import Written
from serve.memory import Kept
from serve.schemas.responses import (
    ITEM,
    CalledFunction,
    CallOutput,
    Includable,
    InputMessage,
    ItemReference,
    ResponsesRequest,
    Thought,
    sealed,
)
from serve.schemas.tools import AllowedTools, NamedFunction
from serve.service import Model, Service


async def create(request: Request) -> Response:
    """Answer what is said, in the conversation that it goes on with."""
    exchange = _Exchange(request.app.state.service, request.state.tenant)
    return await endpoint.answered(
        request, ResponsesRequest, exchange.prepared, exchange.reply, exchange.referred
    )


async def kept(request: Request) -> Response:
    """A response that is kept; DELETE forgets it."""
    found = _kept(request)
    answer = found.answer
    if request.method == "DELETE":
        request.app.state.service.memory.remove(request.state.tenant, answer["id"])
        return JSONResponse({"id": answer["id"], "object": "response", "deleted": True})
    include = _included(request, answer)
    return endpoint.rendered(request, found.size, lambda: _with(answer, include))


def _included(request: Request, answer: dict[str, Any]) -> set[str]:
    """What a reader wants beside the response; raises a 400 for what cannot be had."""
    asked = request.query_params
    if unknown := sorted(asked.keys() - {"include", "include[]", "stream", "include_obfuscation"}):
        known = "; a response is given whole" if unknown[0] == "starting_after" else ""
        message = f"{shown(unknown[0])} is not supported here{known}"
        raise ApiError(400, message, shown(unknown[0]))
    if asked.get("stream", "false").lower() != "false":
        raise ApiError(400, "stream is not supported here; a response is given whole", "stream")
    include = {*asked.getlist("include"), *asked.getlist("include[]")}
    if strange := sorted(include - set(get_args(Includable))):
        raise ApiError(400, f"include has {shown(strange[0])!r}, which there is not", "include")
    texts = [item["content"][0] for item in answer["output"] if item["type"] == "message"]
    if "message.output_text.logprobs" in include and not all(one["logprobs"] for one in texts):
        message = "the log probabilities were not kept: include them when the response is made"
        raise ApiError(400, message, "include")
    return include


def _with(answer: dict[str, Any], include: set[str]) -> dict[str, Any]:
    if "reasoning.encrypted_content" not in include:
        return answer
    output = [
        item | {"encrypted_content": sealed(item["content"][0]["text"])}
        if item["type"] == "reasoning"
        else item
        for item in answer["output"]
    ]
    return answer | {"output": output}


async def cancel(request: Request) -> Response:
    """End one that is being written, where it is."""
    service: Service = request.app.state.service
    id = request.path_params["id"]
    end = service.underway.get((request.state.tenant, id))
    if end is not None:
        answer, size = end(), service.memory.size(request.state.tenant, id)
        return endpoint.rendered(request, size, lambda: answer)
    status = _kept(request).answer["status"]
    raise ApiError(400, f"response {id!r} is {status}; only one in progress can be cancelled")


def _kept(request: Request) -> Kept:
    service: Service = request.app.state.service
    id = request.path_params["id"]
    found = service.memory.find(request.state.tenant, id)
    if found is None or not found.answer:  # not yet
        raise _unknown(404, "response", id, "response_id")
    return found


def _unknown(status: int, what: str, id: str, param: str) -> ApiError:
    return ApiError(
        status,
        f"there is no {what} {id[:80]!r}: it was not stored, is too old, or the server was started "
        "again",
        param,
        f"{param.removesuffix('_id')}_not_found",
    )


class _Exchange:
    """One request and the response to it."""

    def __init__(self, service: Service, tenant: str):
        self.service, self.tenant, self.id = service, tenant, new_id("resp")
        self.echo = dict[str, Written]()  # what a response repeats

    def prepared(
        self, model: Model, tenant: str, fields: ResponsesRequest, most: int
    ) -> list[Choice]:
        """What the engine is asked for; off the event loop."""
        items = self._items(fields)
        ask = asked_truncated if fields.truncation == "auto" else asked
        choices = ask(model, tenant, _chat(fields, items), most)
        self.echo = echo_of(fields)
        if fields.store and self.service.memory.most:
            said = [item.model_dump(by_alias=True, exclude_none=True) for item in items]
            size = sum(len(one.text) for one in self.echo.values()) + len(json.dumps(said))
            kept = Kept({}, said, size)
            self.service.memory.keep(tenant, self.id, kept)
        return choices

    def referred(self, fields: ResponsesRequest) -> int:
        """Bytes of what is kept and gone on from."""
        ids = [item.id for item in fields.input if isinstance(item, ItemReference)]
        if fields.previous_response_id is not None:
            ids.append(fields.previous_response_id)
        return self.service.memory.size(self.tenant, *ids)

    def _items(self, fields: ResponsesRequest) -> list[Any]:
        """The conversation; what is kept of it is no longer than a body, however often named."""
        most = room = self.service.settings.max_body
        made, known = list[Any](), dict[int, tuple[Any, Any, int]]()
        for item in [*self._before(fields.previous_response_id), *fields.input]:
            found = self._referred(item.id) if isinstance(item, ItemReference) else item
            if not isinstance(found, dict):
                made.append(found)
                continue
            if id(found) not in known:
                known[id(found)] = found, ITEM.validate_python(found), len(json.dumps(found))
            _, read, size = known[id(found)]
            made.append(read)
            room -= size
            if room < 0:
                raise ApiError(
                    413,
                    f"what the input refers to, and goes on from, is larger than {most} bytes; "
                    "refer to less",
                    "input",
                )
        return made

    def _before(self, id: str | None) -> list[dict[str, Any]]:
        if id is None:
            return []
        kept = self.service.memory.find(self.tenant, id)
        if kept is None or kept.answer.get("status") in (None, "in_progress"):
            raise _unknown(400, "previous response", id, "previous_response_id")
        return kept.items

    def _referred(self, id: str) -> dict[str, Any]:
        found = self.service.memory.item(self.tenant, id)
        if found is None:
            raise _unknown(400, "item", id, "input")
        return found

    def reply(self, model: Model, fields: ResponsesRequest, choices: list[Choice]) -> Reply:
        key, fields = (self.tenant, self.id), fields.without_texts()
        return Reply(self.service, key, model, fields, self.echo, choices[0])


def _chat(fields: ResponsesRequest, items: list[Any]) -> dict[str, Any]:
    """The body of the same chat."""
    body = fields.sampling()
    messages = messages_of(items)
    if fields.instructions:
        messages.insert(0, {"role": "system", "content": fields.instructions})
    body |= {"messages": messages, "parallel_tool_calls": fields.parallel_tool_calls}
    choice, tools = fields.tool_choice, fields.functions
    if isinstance(choice, AllowedTools):
        allowed = {tool.name for tool in choice.tools}
        choice, tools = choice.mode, [tool for tool in tools if tool[1] in allowed]
    if isinstance(choice, NamedFunction):
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        body["tool_choice"] = choice
    if tools:
        body["tools"] = [tool.chat(name) for _, name, tool in tools]
    if fields.text and fields.text.format:
        body["response_format"] = fields.text.format.chat()
    if fields.reasoning and fields.reasoning.effort == "none":
        body["reasoning_effort"] = "none"
    if fields.logged is not None:
        body |= {"logprobs": True, "top_logprobs": fields.logged}
    return body


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
                function = {"name": item.whole_name, "arguments": item.arguments}
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
