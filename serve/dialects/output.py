"""Responses as they are written: the items of the output, and an event for all that happens."""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from serve.api import endpoint, logprobs, sse
from serve.api.choices import Choice
from serve.dialects.conversation import sealed
from serve.http.errors import ApiError
from serve.memory import Kept
from serve.schemas.responses import ResponsesRequest
from serve.service import Model, Service
from serve.text.answer import Token
from serve.text.calls import new_id as new_call_id
from serve.text.message import Message

Event = dict[str, Any]
# kind of item -> the beginning of its id, what its text is called
_TEXTS = {"reasoning": ("rs", "reasoning_text"), "message": ("msg", "output_text")}


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"


class _Item:
    """One item of the output. Its text comes in pieces; a call's text is its arguments."""

    def __init__(self, kind: str, place: int, name: str = ""):
        self.kind, self._place, self._name = kind, place, name
        self._call_id = new_call_id()
        prefix, self._part = _TEXTS.get(kind, ("fc", ""))
        self.id, self._pieces = new_id(prefix), list[str]()
        self.tokens: list[Any] = []  # log probabilities

    def begun(self) -> Iterator[Event]:
        yield self._event("output_item.added", item=self.shown("in_progress", begun=True))
        if self._part:
            yield self._event("content_part.added", part=self._text(""), **self._where)

    def gained(self, text: str, scores: list[Any]) -> Iterator[Event]:
        self._pieces.append(text)
        self.tokens += scores
        if self._part:
            scored = {"logprobs": scores} if self.kind == "message" else {}
            yield self._event(f"{self._part}.delta", delta=text, **self._where, **scored)
        elif text:
            yield self._event("function_call_arguments.delta", delta=text, item_id=self.id)

    def ended(self, status: str, seal: bool) -> Iterator[Event]:
        text = "".join(self._pieces)
        if self._part:
            scored = {"logprobs": self.tokens} if self.kind == "message" else {}
            yield self._event(f"{self._part}.done", text=text, **self._where, **scored)
            yield self._event("content_part.done", part=self._text(text), **self._where)
        else:
            yield self._event(
                "function_call_arguments.done",
                arguments=text,
                name=self._name,
                item_id=self.id,
            )
        yield self._event("output_item.done", item=self.shown(status, seal=seal))

    def shown(self, status: str, begun: bool = False, seal: bool = False) -> dict[str, Any]:
        """The item as responses have it."""
        text = "".join(self._pieces)
        made: dict[str, Any] = {"id": self.id, "type": self.kind, "status": status}
        if not self._part:
            return made | {"call_id": self._call_id, "name": self._name, "arguments": text}
        made["content"] = [] if begun else [self._text(text)]
        if self.kind == "message":
            return made | {"role": "assistant"}
        return made | {"summary": [], **({"encrypted_content": sealed(text)} if seal else {})}

    def _text(self, text: str) -> dict[str, Any]:
        made: dict[str, Any] = {"type": self._part, "text": text}
        if self.kind == "message":
            made |= {"annotations": [], "logprobs": self.tokens if text else []}
        return made

    @property
    def _where(self) -> dict[str, Any]:
        return {"item_id": self.id, "content_index": 0}

    def _event(self, what: str, **fields: Any) -> Event:
        return {"type": f"response.{what}", "output_index": self._place, **fields}


class Reply(sse.Reply):
    """One response, written event by event; whole, it is what the last event says."""

    named: bool = True
    end: str = ""

    def __init__(
        self,
        service: Service,
        tenant: str,
        id: str,
        model: Model,
        fields: ResponsesRequest,
        choice: Choice,
    ):
        self._service, self._key = service, (tenant, id)
        self._model, self._fields, self._choice = model, fields, choice
        self._created, self._count = int(time.time()), 0
        self._output: list[dict[str, Any]] = []
        self._item: _Item | None = None  # that is being written
        self._call = -1  # the number of the call that is
        self._held: list[Token] = []  # whose log probabilities are to be told
        self._status = "in_progress"

    async def whole(self, working: sse.Working) -> Callable[[], dict[str, Any]]:
        last: Event = {}
        async for event in self.events(working):
            last = event
        return lambda: last["response"]

    async def events(self, working: sse.Working) -> AsyncIterator[Event]:
        """Every event in its order, with its number."""
        self._service.underway[self._key] = self.cancel
        self._remember()
        try:
            for name in ("created", "in_progress"):
                yield self._numbered({"type": f"response.{name}", "response": self.response()})
            async for _, part in working:
                self._held += part.tokens
                for piece in part.pieces:
                    for event in self._gained(piece):
                        yield self._numbered(event)
            for event in self._ended():
                yield self._numbered(event)
        finally:
            del self._service.underway[self._key]
            if self._status in ("in_progress", "failed"):
                self._service.memory.remove(*self._key)

    def fault(self, error: ApiError) -> Event:
        """The event of a response that fails."""
        self._status = "failed"
        return self._numbered({"type": "response.failed", "response": self.response(error)})

    def cancel(self) -> dict[str, Any]:
        """End here; what is written so far counts. Gives the response."""
        self._status = "cancelled"
        self._model.engine.cancel(self._choice.request, "stop")
        return self.response()

    def _numbered(self, event: Event) -> Event:
        self._count += 1
        return {**event, "sequence_number": self._count - 1}

    def _gained(self, gained: Message) -> Iterator[Event]:
        if gained.reasoning:
            yield from self._in("reasoning", gained.reasoning)
        if gained.content:
            yield from self._in("message", gained.content)
        for index, call in gained.calls.items():
            if index != self._call:
                yield from self._close("completed")
                self._call = index
                yield from self._open(_Item("function_call", len(self._output), call.name))
            assert self._item is not None
            yield from self._item.gained(call.arguments, [])

    def _in(self, kind: str, text: str) -> Iterator[Event]:
        """Text in an item of a kind: the open one, or another."""
        if self._item is None or self._item.kind != kind:
            yield from self._close("completed")
            yield from self._open(_Item(kind, len(self._output)))
        assert self._item is not None
        yield from self._item.gained(text, self._scores())

    def _scores(self) -> list[Any]:
        """The log probabilities of a message's text that were not yet told."""
        held, self._held = self._held, []
        if self._fields.logged is None or self._item is None or self._item.kind != "message":
            return []
        scores: list[Any] = logprobs.of_chat(self._model.tokenizer, held)["content"]
        return scores

    def _open(self, item: _Item) -> Iterator[Event]:
        self._item = item
        yield from item.begun()

    def _close(self, status: str) -> Iterator[Event]:
        if self._item is None:
            return
        seal = self._fields.wants("reasoning.encrypted_content")
        self._item.tokens += self._scores()
        self._output.append(self._item.shown(status, seal=seal))
        yield from self._item.ended(status, seal)
        self._item = None

    def _ended(self) -> Iterator[Event]:
        if self._status == "in_progress":
            whole = self._choice.finish == "stop"
            self._status = "completed" if whole else "incomplete"
        if self._item is None and not self._output:  # an answer of nothing is one all the same
            yield from self._in("message", "")
        yield from self._close("completed" if self._status == "completed" else "incomplete")
        name = "completed" if self._status == "completed" else "incomplete"
        yield {"type": f"response.{name}", "response": self._remember()}

    def _remember(self) -> dict[str, Any]:
        """The response as it is now, which is kept if any of it is."""
        response = self.response()
        if kept := self._service.memory.find(*self._key):
            self._service.memory.keep(*self._key, Kept(response, kept.said, kept.weight))
        return response

    def response(self, error: ApiError | None = None) -> dict[str, Any]:
        """The response as it is now."""
        fields, sampling = self._fields, self._model.defaults.sampling
        done = self._status == "completed"
        cut = self._status == "incomplete"
        effort = fields.reasoning.effort if fields.reasoning else None
        form = fields.text.format if fields.text else None
        given = lambda value, usual: usual if value is None else value
        choice = fields.tool_choice
        return {
            "id": self._key[1],
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if done else None,
            "status": self._status,
            "background": False,
            "error": {"code": "server_error", "message": error.message} if error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_tokens,
            "max_tool_calls": None,
            "model": self._model.name,
            "output": list(self._output),
            "parallel_tool_calls": fields.parallel_tool_calls is not False,
            "previous_response_id": fields.previous_response_id,
            "reasoning": {"effort": effort, "summary": None},
            "store": self._service.memory.find(*self._key) is not None,
            "temperature": given(fields.temperature, sampling.temperature),
            "text": {"format": form.shown() if form else {"type": "text"}, "verbosity": "medium"},
            "tool_choice": choice if isinstance(choice, str) else _dumped(choice) or "auto",
            "tools": [_tool(tool.shown()) for tool in fields.tools or ()],
            "top_logprobs": fields.top_logprobs or 0,
            "top_p": given(fields.top_p, sampling.top_p),
            "truncation": fields.truncation or "disabled",
            "usage": None if self._status == "in_progress" else self._usage(),
            "metadata": fields.metadata or {},
        }

    def _usage(self) -> dict[str, Any]:
        usage: Any = endpoint.usage([self._choice])
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                **usage["prompt_tokens_details"],
                "cache_write_tokens": 0,
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }


def _dumped(choice: Any) -> dict[str, Any] | None:
    return None if choice is None else choice.model_dump()


def _tool(shown: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": None, "strict": None, **shown}
