"""One answer that somebody waits for, and how far it has come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve.engine.operations import Update


class Constraint(Protocol):
    """Which ids may come next; no mask while nobody knows."""

    def mask(self, patience: float = 0.0) -> bytes: ...

    def accept(self, token: int) -> None: ...

    @property
    def finish(self) -> str: ...  # stop or length, once nothing may follow


@dataclass(eq=False)
class Request:
    """One answer that somebody waits for."""

    tokens: Sequence[int]
    settings: Any
    max_new_tokens: int  # 0: only the prompt is scored
    emit: Callable[[Update], None]
    ends: Sequence[Sequence[int]] = ()  # stop sequences, to tell "stop" from "length"
    tenant: str = ""
    adapter: int = 0
    prefix_scope: str = ""  # requests share prefixes within it
    constraint: Constraint | None = None
    logprobs: int | None = None  # so many likeliest ids beside each token
    judged: bool = False  # log probabilities of the prompt are wanted
    priority: int = 0  # less is sooner, among the requests of one tenant

    number: int = field(default=0, init=False)  # of its arrival
    slot: int = field(default=-1, init=False)
    pages: list[int] = field(default_factory=list, init=False)  # its table
    names: list[bytes] = field(default_factory=list, init=False)  # of its whole pages, after root
    published: int = field(default=0, init=False)  # pages that others can find
    copied: int = field(default=-1, init=False)  # a page of which it needs a copy at first
    scored: int = field(default=0, init=False)  # prompt tokens judged so far
    prefilled: int = field(default=0, init=False)  # tokens of its text computed or found so far
    given: int = field(default=0, init=False)  # of them, those that the slot was told of
    shared: int = field(default=0, init=False)  # prompt tokens that others had computed
    drafted: int = field(default=0, init=False)  # tokens that were looked up and verified
    accepted: int = field(default=0, init=False)  # of them, those that came
    preempted: bool = field(default=False, init=False)  # it gave its pages up, once at least
    due: int = field(default=0, init=False)  # new tokens that are sure to come
    bound: int = field(default=0, init=False)  # at most so many come
    answer: list[int] = field(default_factory=list, init=False)
    finish: str = field(default="", init=False)

    @property
    def length(self) -> int:
        """Tokens of the prompt and of what is known of its answer."""
        return len(self.tokens) + len(self.answer)

    @property
    def scoring(self) -> bool:
        """Whether some of the prompt is still to be judged."""
        return self.judged and self.scored < len(self.tokens) - 1

    def text(self, start: int, end: int) -> Sequence[int]:
        """Some tokens of the prompt and its answer."""
        prompt = len(self.tokens)
        if end <= prompt:
            return self.tokens[start:end]
        if start >= prompt:
            return self.answer[start - prompt : end - prompt]
        return [*self.tokens[start:], *self.answer[: end - prompt]]
