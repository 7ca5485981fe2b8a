"""What is kept of answers for those who refer to them; bounded in bytes and in time."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Kept:
    """An answer, and the conversation that led to it."""

    answer: dict[str, Any]
    said: Sequence[dict[str, Any]]  # items up to the answer, without it
    size: int  # bytes of both, as JSON has them, roughly
    until: float = 0.0

    @property
    def items(self) -> list[dict[str, Any]]:
        """The whole conversation."""
        return [*self.said, *self.answer.get("output", ())]


class Memory:
    """Answers by owner and id. When they are too many, whoever has most loses the oldest."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        """most: bytes, as JSON has them; 0 keeps nothing. seconds: that each is kept."""
        self.most, self._seconds, self._clock = most, seconds, clock
        self._owners: dict[str, OrderedDict[str, Kept]] = {}
        self._sizes: dict[str, int] = {}
        self._items: dict[tuple[str, str], tuple[Kept, dict[str, Any]]] = {}  # by their own ids
        self._lock = threading.Lock()

    def keep(self, owner: str, id: str, kept: Kept) -> bool:
        """Whether there is room for it; in place of what had its id."""
        with self._lock:
            self._remove(owner, id)
            self._expire()
            if kept.size > self.most:
                return False
            kept.until = self._clock() + self._seconds
            self._owners.setdefault(owner, OrderedDict())[id] = kept
            self._sizes[owner] = self._sizes.get(owner, 0) + kept.size
            for item in kept.answer.get("output", ()):
                self._items[owner, item["id"]] = kept, item
            while sum(self._sizes.values()) > self.most:
                richest = max(self._sizes, key=self._sizes.__getitem__)
                self._remove(richest, next(iter(self._owners[richest])))
            return True

    def find(self, owner: str, id: str) -> Kept | None:
        with self._lock:
            self._expire()
            return self._owners[owner].get(id) if owner in self._owners else None

    def item(self, owner: str, id: str) -> dict[str, Any] | None:
        """A part of one of the answers."""
        with self._lock:
            self._expire()
            return self._items.get((owner, id), (None, None))[1]

    def size(self, owner: str, *ids: str) -> int:
        """Bytes of what is kept under these ids, of answers or of parts of them, at most."""
        with self._lock:
            answers = self._owners.get(owner, OrderedDict())
            found = (answers.get(id) or self._items.get((owner, id), (None,))[0] for id in ids)
            return sum(kept.size for kept in found if kept is not None)

    def remove(self, owner: str, id: str) -> bool:
        """Whether it was there."""
        with self._lock:
            self._expire()
            return self._remove(owner, id)

    def _remove(self, owner: str, id: str) -> bool:
        if owner not in self._owners or id not in self._owners[owner]:
            return False
        kept = self._owners[owner].pop(id)
        for item in kept.answer.get("output", ()):
            self._items.pop((owner, item["id"]), None)
        self._sizes[owner] -= kept.size
        if not self._owners[owner]:
            del self._owners[owner], self._sizes[owner]
        return True

    def _expire(self) -> None:
        now = self._clock()
        for owner, owned in list(self._owners.items()):
            while owned and next(iter(owned.values())).until <= now:
                self._remove(owner, next(iter(owned)))
