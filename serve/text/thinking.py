"""Models that think before they answer: <think>, a thought, </think>, and the rest."""

from collections.abc import Sequence
from typing import Literal

from qwen_jax.text.tokenizer import Tokenizer
from serve.text.grammar import without
from serve.text.message import Message, Parser, held_back

_OPEN, _CLOSE = "<think>", "</think>"

Thought = Literal["none", "possible", "begun"]  # what a prompt leaves open


def after(tokenizer: Tokenizer, ids: Sequence[int]) -> Thought:
    """What kind of thought may follow a prompt.

    A checkpoint thinks if its template knows the markers and its vocabulary has them. A template
    that asks for no thought ends its prompts with an empty one; some begin every thought.
    """
    opening, closing = (tokenizer.specials.get(marker) for marker in (_OPEN, _CLOSE))
    if opening is None or closing is None or _CLOSE not in (tokenizer.chat_template or ""):
        return "none"
    for id in reversed(ids):
        if id in (opening, closing):
            return "begun" if id == opening else "none"
        if tokenizer.token_bytes(id).strip():
            break
    return "possible"


def always(template: str | None) -> bool | None:
    """Whether every answer to a template's prompts has a thought; None where a request says."""
    if template is None:
        return False
    if "enable_thinking" in template:
        return None
    return _CLOSE in template


def within(tokenizer: Tokenizer, text: str) -> Thought:
    """What a message leaves open that is to go on."""
    if _CLOSE not in (tokenizer.chat_template or "") or text.rfind(_OPEN) <= text.rfind(_CLOSE):
        return "none"
    return "begun"


def rules(thought: Thought) -> str:
    """Lark rules of a `start` that leads to `answer`."""
    if thought == "none":
        return "start: answer"
    first = f"({_OPEN} thought)?" if thought == "possible" else "thought"
    thinking = f'thought: THOUGHT? {_CLOSE} "\\n\\n"\nTHOUGHT: {without(_CLOSE)}'
    return f"start: {first} answer\n{thinking}"


class ThinkingParser(Parser):
    """A thought first, then what another parser reads; the line breaks around it are no part."""

    def __init__(self, parser: Parser, begun: bool):
        self._parser, self.thinking, self._started = parser, begun, begun
        self._text = ""  # that is not yet told
        self._lead: list[str] = []  # blanks before it, until it is known what they precede
        self._blank = begun  # nothing yet since the thought began, or ended
        self._breaks = 0  # line breaks that are told if more of the thought follows

    def push(self, text: str) -> Message:
        self._text += text
        if not self._started:
            bare = self._text.lstrip()
            if not bare:
                self._lead.append(self._text)
                self._text = ""
                return Message()
            if len(bare) < len(_OPEN) and _OPEN.startswith(bare):
                return Message()
            self._started, self.thinking = True, bare.startswith(_OPEN)
            if self.thinking:
                self._text, self._blank, self._lead = bare.removeprefix(_OPEN), True, []
        return self._think() if self.thinking else self._answer()

    def finish(self) -> Message:
        gained = Message(reasoning=self._told(self._text)) if self.thinking else self._answer()
        gained.add(self._parser.finish())
        return gained

    def _think(self) -> Message:
        thought, found, rest = self._trimmed().partition(_CLOSE)
        if not found:
            thought = thought[: len(thought) - held_back(thought, (_CLOSE,))]
        self._text = rest if found else self._text[len(thought) :]
        gained = Message(reasoning=self._told(thought))
        if found:
            self.thinking, self._blank = False, True
            gained.add(self._answer())
        return gained

    def _told(self, thought: str) -> str:
        """A thought goes on, but for the line breaks at its end."""
        kept = thought.rstrip("\n")
        told = "\n" * self._breaks + kept if kept else ""
        self._breaks = len(thought) - len(kept) + (0 if kept else self._breaks)
        return told

    def _answer(self) -> Message:
        gained = self._parser.push("".join([*self._lead, self._trimmed()]))
        self._lead, self._text, self.done = [], "", self._parser.done
        return gained

    def _trimmed(self) -> str:
        if self._blank:
            self._text = self._text.lstrip("\n")
            self._blank = not self._text
        return self._text
