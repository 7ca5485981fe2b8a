"""Responses as they are written: the items of the output, and an event for all that happens."""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from serve.api import endpoint, logprobs, sse
from serve.api.choices import Choice
from serve.dialects.blocks import Block, Blocks, Step
from serve.http.errors import ApiError
from serve.http.rendering import Written
from serve.memory import Kept
from serve.schemas.responses import ResponsesRequest, sealed
from serve.service import Model, Service
from serve.text.answer import Token

Event = dict[str, Any]
# kind of block -> the beginning of its id, the type of its item, what its text is called
_KINDS = {
    "thought": ("rs", "reasoning", "reasoning_text"),
    "text": ("msg", "message", "output_text"),
    "call": ("fc", "function_call", "function_call_arguments"),
}


_SCORE, _ITEM = 90, 300  # bytes of a log probability, and of what stands around an item's text


def echo_of(fields: ResponsesRequest) -> dict[str, Written]:
    """What every response repeats of its request; may be as long as that, so it is written once."""
    effort = fields.reasoning.effort if fields.reasoning else None
    form = fields.text.format if fields.text else None
    choice = fields.tool_choice
    told = {
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_tokens,
        "max_tool_calls": None,
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
        "previous_response_id": fields.previous_response_id,
        "reasoning": {"effort": effort, "summary": None},
        "text": {"format": form.shown() if form else {"type": "text"}, "verbosity": "medium"},
        "tool_choice": choice if isinstance(choice, str) else _dumped(choice) or "auto",
        "tools": [tool.told() for tool in fields.tools or ()],
        "top_logprobs": fields.top_logprobs or 0,
        "truncation": fields.truncation or "disabled",
        "metadata": fields.metadata or {},
    }
    return {name: Written(value) for name, value in told.items()}


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"


class Reply(sse.Reply):
    """One response, written event by event; whole, it is what the last event says."""

    named: bool = True
    end: str = ""

    def __init__(
        self,
        service: Service,
        key: tuple[str, str],
        model: Model,
        fields: ResponsesRequest,
        echo: dict[str, Written],
        choice: Choice,
    ):
        """key: owner and id. echo: what is repeated of the request."""
        self._service, self._key = service, key
        self._echo = echo
        self._size = self._before = 0  # bytes of the output, roughly; those that are kept
        self._score_size = _SCORE * (1 + (fields.logged or 0))
        self._model, self._fields, self._choice = model, fields, choice
        self._created, self._count = int(time.time()), 0
        self._output: list[dict[str, Any]] = []
        self._blocks = Blocks()
        self._logged: list[Any] = []  # log probabilities of the text that is written
        self._held: list[Token] = []  # whose log probabilities are to be told
        self._status = "in_progress"

    async def whole(self, working: sse.Working) -> Callable[[], dict[str, Any]]:
        last: Event = {}
        async for event in self._events(working):
            last = event
        return lambda: last["response"]

    async def events(self, working: sse.Working) -> AsyncIterator[Event | sse.Large]:
        """Every event in its order, with its number."""
        async for event in self._events(working):
            yield event if "delta" in event else self._large(event)

    def _large(self, event: Event) -> sse.Large:
        """With all log probabilities it may be megabytes; what it repeats is written already."""
        return sse.Large(len(self._logged) * self._score_size, lambda: event)

    async def _events(self, working: sse.Working) -> AsyncIterator[Event]:
        self._service.underway[self._key] = self.cancel
        self._remember()
        try:
            for name in ("created", "in_progress"):
                yield self._numbered({"type": f"response.{name}", "response": self.response()})
            async for _, part in working:
                self._held += part.tokens
                for piece in part.pieces:
                    for event in self._told(self._blocks.push(piece)):
                        yield self._numbered(event)
                if self._blocks.open is None or self._blocks.open.kind != "text":
                    self._held = []
            for event in self._last():
                yield self._numbered(event)
        finally:
            del self._service.underway[self._key]
            if self._status in ("in_progress", "failed"):
                self._service.memory.remove(*self._key)

    def fault(self, error: ApiError) -> sse.Large:
        """The event of a response that fails."""
        self._status = "failed"
        event = {"type": "response.failed", "response": self.response(error)}
        return self._large(self._numbered(event))

    def cancel(self) -> dict[str, Any]:
        """End here; what is written so far counts. Gives the response."""
        self._status = "cancelled"
        self._model.engine.cancel(self._choice.request, "stop")
        return self.response()

    def _numbered(self, event: Event) -> Event:
        self._count += 1
        return {**event, "sequence_number": self._count - 1}

    def _told(self, steps: Iterator[tuple[Step, Block, str]]) -> Iterator[Event]:
        """The events of what happens to blocks."""
        for step, block, text in steps:
            if step == "begun":
                yield from self._begun(block)
            elif step == "gained":
                yield from self._gained(block, text)
            else:
                self._scores(block)
                yield from self._ended(block)

    def _scores(self, block: Block) -> list[Any]:
        """The log probabilities of a text that were not yet told; a thought's are no part."""
        if self._fields.logged is None or block.kind != "text":
            return []
        held, self._held = self._held, []
        held = [token for token in held if not token.thought]
        scores: list[Any] = logprobs.of_chat(self._model.tokenizer, held)["content"]
        self._logged += scores
        return scores

    def _begun(self, block: Block) -> Iterator[Event]:
        self._logged = []
        empty = self._item(block, "in_progress")
        if block.kind != "call":
            empty["content"] = []
        yield _event("output_item.added", block, item=empty)
        if block.kind != "call":
            yield _event("content_part.added", block, **_where(block), part=self._part(block))

    def _gained(self, block: Block, text: str) -> Iterator[Event]:
        name = f"{_KINDS[block.kind][2]}.delta"
        scored = {"logprobs": self._scores(block)} if block.kind == "text" else {}
        yield _event(name, block, **_where(block), delta=text, **scored)

    def _ended(self, block: Block) -> Iterator[Event]:
        cut = self._status not in ("in_progress", "completed")
        self._output.append(item := self._item(block, "incomplete" if cut else "completed"))
        self._size += _ITEM + len(block.text.encode()) + len(self._logged) * self._score_size
        name = f"{_KINDS[block.kind][2]}.done"
        if block.kind == "call":
            said = {"arguments": block.text, **self._named(block)}
            yield _event(name, block, **_where(block), **said)
        else:
            scored = {"logprobs": self._logged} if block.kind == "text" else {}
            yield _event(name, block, **_where(block), text=block.text, **scored)
            yield _event("content_part.done", block, **_where(block), part=self._part(block))
        yield _event("output_item.done", block, item=item)

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        prefix, kind, _ = _KINDS[block.kind]
        made: dict[str, Any] = {"id": f"{prefix}_{block.id}", "type": kind, "status": status}
        if block.kind == "call":
            said = {"call_id": block.call_id, "arguments": block.text}
            return made | said | self._named(block)
        made["content"] = [self._part(block)]
        if block.kind == "text":
            return made | {"role": "assistant"}
        made["summary"] = []
        if self._fields.wants("reasoning.encrypted_content"):
            made["encrypted_content"] = sealed(block.text)
        return made

    def _named(self, block: Block) -> dict[str, str]:
        """The function that is called, as the client named it."""
        for namespace, name, tool in self._fields.functions:
            if name == block.name and namespace is not None:
                return {"name": tool.name, "namespace": namespace}
        return {"name": block.name}

    def _part(self, block: Block) -> dict[str, Any]:
        made: dict[str, Any] = {"type": _KINDS[block.kind][2], "text": block.text}
        if block.kind == "text":
            made |= {"annotations": [], "logprobs": self._logged}
        return made

    def _last(self) -> Iterator[Event]:
        if self._status == "in_progress":
            self._status = "completed" if self._choice.finish == "stop" else "incomplete"
        yield from self._told(self._blocks.end())
        name = "completed" if self._status == "completed" else "incomplete"
        yield {"type": f"response.{name}", "response": self._remember()}

    def _remember(self) -> dict[str, Any]:
        """The response as it is now, which is kept if any of it is."""
        response = self.response()
        if kept := self._service.memory.find(*self._key):
            before, self._before = self._before, self._size
            size = kept.size + self._size - before
            self._service.memory.keep(*self._key, Kept(response, kept.said, size))
        return response

    def response(self, error: ApiError | None = None) -> dict[str, Any]:
        """The response as it is now."""
        fields, sampling = self._fields, self._model.defaults.sampling
        done = self._status == "completed"
        cut = self._status == "incomplete"
        given = lambda value, usual: usual if value is None else value
        return {
            **self._echo,
            "id": self._key[1],
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if done else None,
            "status": self._status,
            "background": False,
            "error": {"code": "server_error", "message": error.message} if error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self._model.name,
            "output": list(self._output),
            "store": self._service.memory.find(*self._key) is not None,
            "temperature": given(fields.temperature, sampling.temperature),
            "top_p": given(fields.top_p, sampling.top_p),
            "usage": None if self._status == "in_progress" else self._usage(),
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


def _event(what: str, block: Block, **fields: Any) -> Event:
    return {"type": f"response.{what}", "output_index": block.place, **fields}


def _where(block: Block) -> dict[str, Any]:
    made: dict[str, Any] = {"item_id": f"{_KINDS[block.kind][0]}_{block.id}"}
    return made if block.kind == "call" else made | {"content_index": 0}


def _dumped(choice: Any) -> dict[str, Any] | None:
    return None if choice is None else choice.model_dump()
