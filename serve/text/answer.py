"""One answer as a message while its tokens come in."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from qwen_jax.text.tokenizer import StopStrings, TextStream, Tokenizer
from serve.engine.operations import Update
from serve.text.message import Message, Parser


@dataclass(frozen=True)
class Token:
    """A token with its log probability, and the likeliest ids in its place.

    text: what it adds to the answer; of a character in several tokens, the last one adds it all.
    spelled: its own bytes, as far as they are part of the answer; control tokens have none.
    """

    id: int
    logprob: float
    best: list[tuple[int, float]]
    text: str = ""
    spelled: bytes = b""
    begun: int = 0  # bytes at its end that begin another character
    thought: bool = False  # it is no part of the answer itself

    def cut(self, kept: int) -> "Token":
        """Without what lies behind so many characters."""
        lost = len(self.text[kept:].encode()) + self.begun
        spelled = self.spelled[: max(0, len(self.spelled) - lost)]
        return replace(self, text=self.text[:kept], spelled=spelled)


@dataclass
class Part:
    """What an answer gained."""

    pieces: list[Message] = field(default_factory=list)  # in the order in which they were said
    ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)  # empty unless log probabilities are asked
    finish: str = ""
    stopped: bool = False  # by what the device knows nothing of: a stop string, the parser

    @property
    def message(self) -> Message:
        """All of it."""
        whole = Message()
        for piece in self.pieces:
            whole.add(piece)
        return whole


class Answer:
    """Takes updates in, gives parts of a message out; ends at stop strings.

    ends: ids that end an answer and are no part of its text. min_tokens: no stop string counts
    before so many.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        parser: Parser,
        stop: Sequence[str],
        ends: Collection[int],
        min_tokens: int = 0,
        told: Collection[str] = (),
        skip_specials: bool = True,
    ):
        """told: stop strings that are part of the text. skip_specials: control tokens are not."""
        self._tokenizer, self._parser, self._ends = tokenizer, parser, ends
        self._text = TextStream(tokenizer, skip_specials=skip_specials)
        self._stops, self._least = StopStrings(stop), min_tokens
        self._told_stops, self._skipped = told, tokenizer.hidden if skip_specials else ()
        self._held: list[Token] = []  # whose text may not be part of the answer
        self._written = self._told = 0  # characters decoded, and those that the parser has
        self.count = 0  # tokens, the one that ends it included
        self.reasoning = 0  # of them, those before the answer itself
        self.called = False  # a function

    @property
    def stop(self) -> str:
        """The stop string that ended it, if one did."""
        return self._stops.met

    def push(self, update: Update) -> Part:
        part = Part(finish=update.finish)
        for index, id in enumerate(update.tokens):
            self.count += 1
            part.ids.append(id)
            thinking = self._parser.thinking
            before = len(self._held)
            if id not in self._ends:
                text = self._text.push([id])
                if update.logprobs:
                    hidden = id in self._skipped
                    spelled = b"" if hidden else self._tokenizer.token_bytes(id)
                    scored = update.logprobs[index], update.best[index]
                    self._held.append(Token(id, *scored, text, spelled, self._text.pending))
                self._read(text, part)
            if thinking or self._parser.thinking:
                self.reasoning += 1
                self._held[before:] = [replace(one, thought=True) for one in self._held[before:]]
            if part.stopped:
                break
        if update.finish and not part.stopped:
            self._end(part)
        if part.stopped:
            part.finish = "stop"
        part.tokens = self._released(bool(part.finish))
        if part.finish:
            part.pieces.append(self._parser.finish())
        self.called = self.called or any(piece.calls for piece in part.pieces)
        return part

    def _read(self, text: str, part: Part) -> None:
        stopped = False
        self._written += len(text)
        # a thought may hold anything
        if not self._parser.thinking and self.count > self._least:
            text, stopped = self._stops.push(text)
            if stopped and self._stops.met in self._told_stops:
                text += self._stops.met
        self._told += len(text)
        part.pieces.append(self._parser.push(text))
        part.stopped = stopped or self._parser.done

    def _end(self, part: Part) -> None:
        """What has been held back: part of a character, or of a stop string."""
        text = self._text.flush()
        if text and self._held:
            self._held[-1] = replace(self._held[-1], text=self._held[-1].text + text)
        self._read(text, part)
        if not part.stopped:
            text = self._stops.flush()
            self._told += len(text)
            part.pieces.append(self._parser.push(text))

    def _released(self, ended: bool) -> list[Token]:
        """Tokens whose text is told, in order; one without text waits for the next that has some.

        At the end all that are part of the text, the last one cut where the text is.
        """
        if not self._held or (self._text.pending and not ended):
            return []
        start = self._written - sum(len(token.text) for token in self._held)
        if ended and self._told == self._written:
            released, self._held = self._held, []
            return released
        released, ready = [], 0
        for token in self._held:
            room = self._told - start
            if room < len(token.text) and not ended:
                break
            if room <= 0:
                break
            released.append(token)
            start += len(token.text)
            if token.text:
                ready = len(released)
        del self._held[:ready], released[ready:]
        if ended and released:
            released[-1] = released[-1].cut(len(released[-1].text) - max(0, start - self._told))
        return released
