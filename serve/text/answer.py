"""One answer as a message while its tokens come in."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen_jax.text.tokenizer import StopStrings, TextStream, Tokenizer
from serve.engine.operations import Update
from serve.text.message import Message, Parser


@dataclass(frozen=True)
class Token:
    """A token with its log probability, and the likeliest ids in its place."""

    id: int
    logprob: float
    best: list[tuple[int, float]]


@dataclass
class Part:
    """What an answer gained."""

    message: Message = field(default_factory=Message)
    tokens: list[Token] = field(default_factory=list)  # empty unless log probabilities are asked
    finish: str = ""
    stopped: bool = False  # by what the device knows nothing of: a stop string, the parser


class Answer:
    """Takes updates in, gives parts of a message out; ends at stop strings.

    ends: ids that end an answer and are no part of its text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        parser: Parser,
        stop: Sequence[str],
        ends: Sequence[Sequence[int]],
    ):
        self._text, self._parser, self._stops = TextStream(tokenizer), parser, StopStrings(stop)
        self._ends = {end[0] for end in ends if len(end) == 1}
        self.count = 0  # tokens, the one that ends it included
        self.reasoning = 0  # of them, those before the answer itself
        self.called = False  # a function

    def push(self, update: Update) -> Part:
        part = Part(finish=update.finish)
        for index, id in enumerate(update.tokens):
            self.count += 1
            if update.logprobs and id not in self._ends:
                part.tokens.append(Token(id, update.logprobs[index], update.best[index]))
            thinking = self._parser.thinking
            self._read(self._text.push([id]), part)
            self.reasoning += thinking or self._parser.thinking
            if part.stopped:
                part.finish = "stop"
                break
        if update.finish and not part.stopped:
            self._read(self._text.flush(), part)
            part.message.add(self._parser.push(self._stops.flush()))
        if part.finish:
            part.message.add(self._parser.finish())
        self.called = self.called or bool(part.message.calls)
        return part

    def _read(self, text: str, part: Part) -> None:
        stopped = False
        if not self._parser.thinking:  # a thought may hold anything
            text, stopped = self._stops.push(text)
        part.message.add(self._parser.push(text))
        part.stopped = stopped or self._parser.done
