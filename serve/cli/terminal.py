"""Markdown on a terminal while it grows: finished blocks scroll away, the last one is redrawn."""

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown
from rich.segment import Segment
from rich.theme import Theme

FRAME_SECONDS = 0.05
THEME = Theme({"markdown.code": "cyan", "markdown.code_block": "none"})
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
INSIDE = re.compile(r"\s|[-*+] |\d+[.)] ")  # begins a line that may belong to the block above


def printable(text: str) -> str:
    """Text without the control characters by which a model, or a server, could rule a terminal."""
    return CONTROL.sub("�", text.replace("\r\n", "\n"))


class _LeftHeading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, Any]] = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class Prose(Markdown):
    """Markdown as models write it: HTML is text, a line's end is one, links show where they go."""

    elements: ClassVar[dict[str, Any]] = {**Markdown.elements, "heading_open": _LeftHeading}

    def __init__(self, text: str):
        super().__init__(
            "", code_theme="ansi_dark", hyperlinks=False, inline_code_theme="ansi_dark"
        )
        parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        self.parsed = parser.parse(printable(text))
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


@dataclass
class Block:
    """Markdown without empty lines around it; of its lines the last `most`, if there are more."""

    text: str
    most: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        padded = console.render_lines(Prose(self.text), options.update(height=None), pad=False)
        lines = [_without_padding(line) for line in padded]
        full = [index for index, line in enumerate(lines) if line]
        lines = lines[full[0] : full[-1] + 1] if full else []
        for line in lines if self.most is None else lines[-self.most :]:
            yield from line
            yield Segment.line()


def _without_padding(line: list[Segment]) -> list[Segment]:
    """A line without spaces at its end: what a terminal echoes for Ctrl-C has to fit behind it."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []


class Growing:
    """`with Growing(console) as shown: shown.update(text)`, with all of the text every time."""

    def __init__(self, console: Console):
        self._console, self._text, self._printed, self._drawn = console, "", 0, 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Growing":
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Print what is left, also after an interruption."""
        with _uninterrupted():
            self._live.__exit__(None, None, None)
            if self._text[self._printed :].strip():
                self._console.print(Block(self._text[self._printed :]))

    def update(self, text: str) -> None:
        self._text = text
        if time.monotonic() - self._drawn < FRAME_SECONDS:
            return
        with _uninterrupted():
            end = self._printed + settled(text[self._printed :])
            if end > self._printed:
                self._live.update("")
                self._console.print(Block(text[self._printed : end]))
                self._console.print()
                self._printed = end
            rest = Block(text[end:], max(self._console.height - 2, 1))
            self._live.update(rest, refresh=True)
        self._drawn = time.monotonic()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the screen is as it should be."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def settled(text: str) -> int:
    """How much of a growing Markdown text is finished blocks, which no later text can change."""
    end = at = 0
    fence = ""
    blank = False
    for line in _whole_lines(text):
        found = FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not line.strip(" `~\n"):
                fence = ""
        else:
            if blank and line.strip() and not INSIDE.match(line):
                end = at
            fence = found[1] if found else ""
        blank = not line.strip()
        at += len(line)
    return end


def _whole_lines(text: str) -> Iterator[str]:
    """The lines of a text, the last one too if its beginning can be judged."""
    lines = text.split("\n")
    yield from (line + "\n" for line in lines[:-1])
    if len(lines[-1]) > 3:
        yield lines[-1]
