"""Where each record of a data file lies, so that one can be read without the others."""

import json
import mmap
import re
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from qwen_jax.data.formats import recognise
from qwen_jax.files.strict_json import decode

SUFFIXES = (".json", ".jsonl", ".txt")
UNREAD = {  # what people have, and what makes it one that is read
    ".gz": "; unpack it first: gunzip FILE",
    ".zst": "; unpack it first: zstd -d FILE",
    ".zip": "; unpack it first: unzip FILE",
    **dict.fromkeys(
        (".parquet", ".arrow"),
        "; with the library datasets: Dataset.from_parquet(FILE), or from_file for .arrow, "
        ".to_json(NEW)",
    ),
}
LONGEST_OBJECT = 1 << 20  # bytes that are read to tell an object over several lines from damage
UTF8_MARK, UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
BLANKS = re.compile(r"[ \t\r\n]*")
CONTENT = re.compile(rb"[^ \t\r\n]")
ENDS = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)  # finds no other fault


@dataclass(frozen=True)
class Index:
    """spans: [records, 3] of the first byte, the byte behind the last, and the line.

    form: one text, lines of JSON, or one list of JSON.
    format: what the first record is, as `formats.recognise` says; None where it cannot tell.
    """

    path: Path
    spans: np.ndarray
    form: Literal["text", "lines", "list"]
    format: str | None


def index(path: Path) -> Index:
    """Told apart by content, but for .txt. Raises ValueError for a file without records."""
    if path.suffix not in SUFFIXES:
        hint = UNREAD.get(path.suffix, "")
        raise ValueError(f"got a name in {path.suffix!r}, wanted {', '.join(SUFFIXES)}{hint}")
    with path.open("rb") as stream:
        if stream.read(2) in UTF16_MARKS:
            raise ValueError("got UTF-16, wanted UTF-8")
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = len(UTF8_MARK) if data[:3] == UTF8_MARK else 0
            opening = CONTENT.search(data, start)
            if opening is None:
                raise ValueError("the file is empty")
            if path.suffix == ".txt":
                return Index(path, np.array([[start, len(data), 1]]), "text", "text")
            form: Literal["lines", "list"] = "list" if opening[0] == b"[" else "lines"
            spans = _items(data, start) if form == "list" else _lines(data, start)
            first = data[spans[0] : spans[1]]
            if form == "lines":
                _expect_lines(data, spans)
    return Index(path, np.array(spans, np.int64).reshape(-1, 3), form, _format(first))


def _format(first: bytes) -> str | None:
    try:
        return recognise(decode(first))
    except ValueError:
        return None


def _lines(data: mmap.mmap, start: int) -> "array[int]":
    spans, line = array("q"), 0
    while start < len(data):
        line += 1
        found = data.find(b"\n", start)
        stop = len(data) if found < 0 else found
        if CONTENT.search(data, start, stop):
            spans.extend((start, stop, line))
        start = stop + 1
    return spans


def _expect_lines(data: mmap.mmap, spans: "array[int]") -> None:
    """Raises ValueError if the first object goes on behind its line: each line would be one."""
    start, stop, line = spans[:3]
    text = data[start : start + LONGEST_OBJECT].decode(errors="replace")
    try:
        end = ENDS.raw_decode(text, _content(text, 0))[1]
    except (ValueError, RecursionError):
        return
    if end > len(data[start:stop].decode(errors="replace")):
        last = line + text.count("\n", 0, end)
        raise ValueError(
            f"the object of line {line} ends in line {last}; wanted one object a line, or a list "
            "of them, as in [{...}, {...}]"
        )


def _items(data: mmap.mmap, start: int) -> "array[int]":
    try:
        text = data[start:].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {start + error.start} is not UTF-8") from None
    spans, line, seen = array("q"), 1, 0
    at = text.index("[") + 1
    try:
        while True:
            at = _content(text, at)
            end = ENDS.raw_decode(text, at)[1]
            start += len(text[seen:at].encode())
            line += text.count("\n", seen, at)
            spans.extend((start, start + len(text[at:end].encode()), line))
            seen, at = at, _content(text, end)
            if text[at : at + 1] != ",":
                break
            at += 1
        if text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        if (at := _content(text, at + 1)) < len(text):
            raise json.JSONDecodeError("Something behind the list", text, at)
    except json.JSONDecodeError as error:
        if text[at:] and not spans and text[at] == "]":
            raise ValueError("got an empty list, wanted records") from None
        raise ValueError(f"line {error.lineno} is not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"the item behind line {line} is nested too deeply") from None
    return spans


def _content(text: str, at: int) -> int:
    """Where the blanks end."""
    return BLANKS.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing too
