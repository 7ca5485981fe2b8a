"""Function calling for Qwen1.5 and later: JSON between <tool_call> and </tool_call>."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from serve.text import calls
from serve.text.calls import Otherwise
from serve.text.grammar import quoted, without
from serve.text.message import Call, Message, Parser, held_back

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


def rules(
    functions: Sequence[Mapping[str, Any]], otherwise: Otherwise, tokens: Collection[str]
) -> str:
    """Lark rules of an `answer` that calls functions, or is what it may be otherwise.

    tokens: names of control tokens; the markers are tokens of their own in most vocabularies.
    """
    opening, closing = (m if m in tokens else quoted(m) for m in (_OPEN, _CLOSE))
    shapes = {
        "nothing": f'{opening} called ("\\n" {opening} called)*',
        "body": f'{opening} called ("\\n" {opening} called)* | @body',
        "text": "(opened called)* TEXT?",
    }
    opened = f"opened: TEXT? {opening}"
    if _OPEN not in tokens:
        opened = f"opened[lazy]: /(?s:.*)/ {opening}"
    return "\n".join(
        [
            f"answer: {shapes[otherwise]}",
            f'called: "\\n" function "\\n" {closing}',
            *calls.rules(functions, _before, "}"),
            *([opened, f"TEXT: {without(_OPEN)}"] if otherwise == "text" else []),
        ]
    )


def _before(name: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


class HermesParser(Parser):
    """Visible text as it comes, calls when they are whole."""

    def __init__(self, parallel: bool = True) -> None:
        """parallel: more than one call counts."""
        self._parallel = parallel
        self._text, self._inside, self._count = "", False, 0
        self._breaks = ""  # after a call, line breaks that count if text follows

    def push(self, text: str) -> Message:
        gained = Message()
        self._text += text
        while not self.done:
            at = self._end() if self._inside else self._text.find(_OPEN)
            if at < 0:
                break
            before = self._text[:at]
            if self._inside:
                self._text = self._text[at + len(_CLOSE) :]
                gained.add(self._call(before, _CLOSE))
            else:
                self._text = self._text[at + len(_OPEN) :]
                gained.add(self._content(before))
            self._inside = not self._inside
        if not self._inside and not self.done:
            kept = len(self._text) - held_back(self._text, (_OPEN,))
            gained.add(self._content(self._text[:kept]))
            self._text = self._text[kept:]
        return gained

    def finish(self) -> Message:
        """What is left: an open call that is whole after all, or text."""
        if self.done:
            return Message()
        return self._call(self._text, "") if self._inside else self._content(self._text)

    def _end(self) -> int:
        """Where an open call ends; -1 if not yet. A marker within a string of it is text."""
        at = self._text.find(_CLOSE)
        while at >= 0 and _in_string(self._text[:at]):
            at = self._text.find(_CLOSE, at + 1)
        return at

    def _content(self, text: str) -> Message:
        """Text, but for the line breaks around calls that have been made."""
        if not self._count:
            return Message(text)
        text = self._breaks + text if self._said else text.lstrip("\n")
        kept = text.rstrip("\n")
        self._breaks, self._said = text[len(kept) :], self._said or bool(kept)
        return Message(kept)

    def _call(self, source: str, closing: str) -> Message:
        """One call; text that is none stays visible, so that nothing is lost."""
        try:
            call = json.loads(source)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            name = None
        if not isinstance(name, str):
            return self._content(_OPEN + source + closing)
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        index, self._count = self._count, self._count + 1
        self._said, self._breaks, self.done = False, "", not self._parallel
        return Message(calls={index: Call(name, arguments)})

    _said = False  # any text since the last call


def _in_string(source: str) -> bool:
    """Whether JSON breaks off within a string."""
    try:
        json.loads(source)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        pass
    return False
