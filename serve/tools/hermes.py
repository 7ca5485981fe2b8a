"""Function calling for Qwen1.5 and later: JSON between <tool_call> and </tool_call>."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from serve.tools.calls import Delta, Forced, alternatives, held_back

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


def forced(functions: Sequence[Mapping[str, Any]]) -> Forced:
    """An answer that calls one of the functions."""
    grammar = alternatives(functions, '{"name": "NAME", "arguments": ', "}\n" + _CLOSE)
    return Forced(_OPEN + "\n", grammar)


class Parser:
    """Visible text as it comes, calls when they are whole."""

    def __init__(self) -> None:
        self._text, self._inside, self._count = "", False, 0
        self.called = False

    def push(self, text: str) -> list[Delta]:
        self._text += text
        deltas = []
        while True:
            marker = _CLOSE if self._inside else _OPEN
            before, found, after = self._text.partition(marker)
            if not found:
                break
            deltas += self._call(before) if self._inside else self._content(before)
            self._text, self._inside = after, not self._inside
        if not self._inside:
            keep = held_back(self._text, (_OPEN,))
            deltas += self._content(self._text[: len(self._text) - keep])
            self._text = self._text[len(self._text) - keep :]
        return deltas

    def finish(self) -> list[Delta]:
        """What is left: an open call that is whole after all, or text."""
        if self._inside:
            return self._call(self._text)
        return [Delta(self._text)] if self._text else []

    def _content(self, text: str) -> list[Delta]:
        if self.called:  # the line breaks between calls
            text = text.strip("\n")
        return [Delta(text)] if text else []

    def _call(self, source: str) -> list[Delta]:
        """One call; text that is none stays visible, so that nothing is lost."""
        try:
            call = json.loads(source)
            name, arguments = call["name"], call.get("arguments", {})
            assert isinstance(name, str)
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError):
            return [Delta(_OPEN + source + _CLOSE)]
        given = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        self.called, self._count = True, self._count + 1
        return [Delta("", self._count - 1, name, given)]
