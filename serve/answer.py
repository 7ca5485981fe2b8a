"""One answer as text while its tokens come in."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen_jax.tokenizer import StopStrings, TextStream, Tokenizer
from serve.operations import News


@dataclass(frozen=True)
class Token:
    """A token with its log probability, and the likeliest ids in its place."""

    id: int
    logprob: float
    best: list[tuple[int, float]]


@dataclass
class Part:
    """What an answer gained."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)  # empty unless log probabilities are asked
    finish: str = ""
    stopped: bool = False  # at a stop string, which the device knows nothing of


class Answer:
    """Takes news in, gives text out; ends at stop strings.

    ends: ids that end an answer and are no part of its text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], ends: Sequence[Sequence[int]]):
        self._text, self._stops = TextStream(tokenizer), StopStrings(stop)
        self._ends = {end[0] for end in ends if len(end) == 1}
        self.count = 0  # tokens, the one that ends it included

    def push(self, news: News) -> Part:
        part = Part(finish=news.finish)
        for place, id in enumerate(news.tokens):
            self.count += 1
            if news.logprobs and id not in self._ends:
                part.tokens.append(Token(id, news.logprobs[place], news.best[place]))
            text, part.stopped = self._stops.push(self._text.push([id]))
            part.text += text
            if part.stopped:
                part.finish = "stop"
                return part
        if news.finish:
            text, stopped = self._stops.push(self._text.flush())
            part.text += text + ("" if stopped else self._stops.flush())
        return part
