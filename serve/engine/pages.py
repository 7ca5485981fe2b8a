"""Who holds which page of keys and values, and which pages hold the beginning of which texts.

A page that is full and computed has a name: a digest of its tokens and of all before them, so that
names form a tree. Whoever starts with the same tokens holds the same page. Pages that nobody holds
keep their names until they are needed: the one that rests longest goes first.
"""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_HEAD = 16  # tokens that a page must share before it is worth copying


def root(scope: str) -> bytes:
    """Where the names of texts begin. scope: what, beside tokens, decides who may share."""
    return hashlib.blake2b(scope.encode(), digest_size=16).digest()


def name(before: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a page that follows another."""
    content = struct.pack(f"{len(tokens)}q", *tokens)
    return hashlib.blake2b(before + content, digest_size=16).digest()


@dataclass(frozen=True)
class _Entry:
    """What a named page holds."""

    name: bytes  # empty for a page that is not full
    head: bytes  # of its first tokens, after the same text
    tokens: Sequence[int]


class Pages:
    """`count` pages of `size` tokens each."""

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size
        self._holders = [0] * count
        self._blank = list(range(count - 1, -1, -1))
        self._resting: OrderedDict[int, None] = OrderedDict()  # named, held by nobody
        self._entries: dict[int, _Entry] = {}
        self._named: dict[bytes, int] = {}
        self._heads: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Pages that nobody holds."""
        return len(self._blank) + len(self._resting)

    @property
    def usage(self) -> float:
        """The part of all pages that somebody holds."""
        return 1 - self.available / self.count

    def take(self, count: int) -> list[int]:
        """So many pages for new tokens; their names are forgotten."""
        assert count <= self.available
        taken = []
        for _ in range(count):
            if self._blank:
                page = self._blank.pop()
            else:
                page, _ = self._resting.popitem(last=False)
                self._forget(page)
            self._holders[page] = 1
            taken.append(page)
        return taken

    def hold(self, page: int) -> None:
        """One more text goes through this page."""
        if not self._holders[page]:
            del self._resting[page]
        self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """A text needs these no more; its last page is the first to be used again."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                if page in self._entries:
                    self._resting[page] = None
                else:
                    self._blank.append(page)

    # --- names ---------------------------------------------------------------------------------
    def publish(self, page: int, before: bytes, tokens: Sequence[int], full: bytes) -> None:
        """Others may find what the page holds: tokens that follow the text named `before`.

        full: its name; empty for a page that is not full.
        """
        head = name(before, tokens[:_HEAD]) if len(tokens) >= _HEAD else b""
        if page in self._entries or full in self._named or (not full and (head in self._heads)):
            return
        if not (full or head):
            return
        self._entries[page] = _Entry(full, head, tokens)
        if full:
            self._named[full] = page
        if head:
            self._heads[head] = page

    def find(self, wanted: bytes) -> int | None:
        """The page of this name."""
        return self._named.get(wanted)

    def find_part(self, before: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """(page, how many of the tokens that follow `before` it begins with), or (-1, 0)."""
        page = self._heads.get(name(before, tokens[:_HEAD])) if len(tokens) >= _HEAD else None
        if page is None:
            return -1, 0
        pairs = enumerate(zip(tokens, self._entries[page].tokens, strict=False))
        length = min(len(tokens), len(self._entries[page].tokens))
        return page, next((place for place, (one, other) in pairs if one != other), length)

    def _forget(self, page: int) -> None:
        entry = self._entries.pop(page)
        if self._named.get(entry.name) == page:
            del self._named[entry.name]
        if self._heads.get(entry.head) == page:
            del self._heads[entry.head]

    # --- what must always be true --------------------------------------------------------------
    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless exactly these tables hold pages, and all others rest."""
        held, taken = [0] * self.count, [page for table in tables for page in table]
        for page in taken:
            held[page] += 1
        idle = {*self._blank, *self._resting}
        assert self._holders == held, "a page has other holders than it says"
        assert len(idle) == len(self._blank) + len(self._resting), "a page is free twice"
        assert len(idle) == held.count(0), "a page is lost"
        assert idle.isdisjoint(taken), "a page is held and free"
        named = self._entries.keys()
        assert named.isdisjoint(self._blank), "a blank page has a name"
        assert named >= {*self._named.values(), *self._heads.values()}, "a name leads nowhere"
