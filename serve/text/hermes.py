"""Function calling for Qwen1.5 and later: JSON between <tool_call> and </tool_call>."""

import json
import re
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

    def __init__(self, parallel: bool = True, followed: bool = False) -> None:
        """parallel: more than one call counts. followed: a grammar is, and an open call is one."""
        self._parallel, self._followed = parallel, followed
        self._text = ""  # that is not yet taken in: nothing, or what may begin a marker
        self._open: OpenCall | None = None
        self._count = 0
        self._breaks = 0  # after a call, line breaks that count if text follows

    def push(self, text: str) -> Message:
        gained = Message()
        text = self._text + text
        at = 0
        while not self.done:
            marker = _CLOSE if self._open else _OPEN
            end = text.find(marker, at)
            if end < 0:
                break
            before, at = text[at:end], end + len(marker)
            if self._open is None:
                gained.add(self._content(before))
                self._open = OpenCall()
            elif self._open.closed(before):
                gained.add(self._call(self._open.source(), _CLOSE))
                self._open = None
        marker = _CLOSE if self._open else _OPEN
        kept = max(at, len(text) - held_back(text[at:][-len(marker) :], (marker,)))
        self._text = text[kept:]
        if self._open:
            self._open.parts.append(text[at:kept])
        elif not self.done:
            gained.add(self._content(text[at:kept]))
        return gained

    def finish(self) -> Message:
        """What is left: an open call that is whole after all, or text."""
        if self.done:
            return Message()
        if self._open is None:
            return self._content(self._text)
        source, end = self._open.source() + self._text, self._text
        if self._followed and end and _CLOSE.startswith(end):  # a marker that was cut
            source = source.removesuffix(end)
        return self._call(source, "")

    def _content(self, text: str) -> Message:
        """Text, but for the line breaks around calls that have been made."""
        if not self._count:
            return Message(text)
        if not self._said:
            text = text.lstrip("\n")
        kept = text.rstrip("\n")
        told = "\n" * self._breaks + kept if kept else ""
        self._breaks = len(text) - len(kept) + (0 if kept else self._breaks)
        self._said = self._said or bool(kept)
        return Message(told)

    def _call(self, source: str, closing: str) -> Message:
        """One call; text that is none stays visible, so that nothing is lost."""
        try:
            call = json.loads(source)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            name = None
        if not isinstance(name, str):
            cut = _BEGUN.fullmatch(source) if self._followed and not closing else None
            if cut is None:
                return self._content(_OPEN + source + closing)
            name, arguments = json.loads(cut[1]), cut[2]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        index, self._count = self._count, self._count + 1
        self._said, self._breaks, self.done = False, 0, not self._parallel
        return Message(calls={index: Call(_writable(name), _writable(arguments))})

    _said = False  # any text since the last call


class OpenCall:
    """The text of a call as it grows.

    A marker within a string of it is text. Whether it is within one is told by the quotes since the
    last marker; whether all before is JSON at all, by reading it whole, at markers alone and only
    where there is twice as much of it as when it was last read.
    """

    def __init__(self) -> None:
        self.parts: list[str] = []  # since the last marker
        self._before: list[str] = []  # markers and what came before them
        self._size, self._read_at = 0, 0
        self._in_string = False

    def closed(self, text: str) -> bool:
        """Whether the marker behind `text`, which goes on from the parts, ends the call."""
        part = "".join([*self.parts, text])
        self.parts = []
        self._before.append(part)
        self._size += len(part)
        self._in_string ^= _ESCAPED.sub("", part).count('"') % 2 == 1
        if self._in_string and self._size >= 2 * self._read_at:
            self._in_string = _breaks_off_in_string("".join(self._before))
            self._read_at = self._size
        if self._in_string:
            self._before.append(_CLOSE)
            self._size += len(_CLOSE)
        return not self._in_string

    def source(self) -> str:
        return "".join([*self._before, *self.parts])


# What a grammar lets a call begin with: its name, and the arguments as far as they go.
# Its string is one of JSON: a format beside the functions may write something like a call.
_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9A-Fa-f]{4})*"'
_BEGUN = re.compile(rf'\s*\{{"name": ({_STRING}), "arguments": (.*)', re.DOTALL)
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_HALF = re.compile("[\ud800-\udfff]")


def _writable(text: str) -> str:
    """Half a character, which a model may write as an escape, stays one: no UTF-8 has it."""
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def _breaks_off_in_string(source: str) -> bool:
    try:
        json.loads(source)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        pass
    return False
