"""Which slots hold the beginning of which texts, by whole chunks.

Only chunks that a prefill computed at the same places count, so an answer does not depend on
whether its prompt was found here: not even in the last bit.
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Sequence


def chain(prefix_scope: str, tokens: Sequence[int], chunk: int) -> list[bytes]:
    """A digest for each whole chunk of a text, and all before it.

    prefix_scope: what beside the tokens decides keys and values, and who may share them.
    """
    digests, last = [], hashlib.blake2b(prefix_scope.encode(), digest_size=16).digest()
    for end in range(chunk, len(tokens) + 1, chunk):
        content = array("q", tokens[end - chunk : end]).tobytes()
        last = hashlib.blake2b(last + content, digest_size=16).digest()
        digests.append(last)
    return digests


class PrefixCache:
    """The chunks that each slot holds from its start on."""

    def __init__(self, slots: int):
        self._held: list[list[bytes]] = [[] for _ in range(slots)]
        self._owners: dict[bytes, set[int]] = defaultdict(set)

    def find(self, digests: Sequence[bytes], preferred: Sequence[int]) -> tuple[int, int]:
        """(slot, chunks) of the longest beginning, in a preferred slot where one has it."""
        for count in range(len(digests), 0, -1):
            if owners := self._owners.get(digests[count - 1]):
                return next((slot for slot in preferred if slot in owners), min(owners)), count
        return -1, 0

    def held(self, slot: int) -> int:
        return len(self._held[slot])

    def reset(self, slot: int, digests: Sequence[bytes] = ()) -> None:
        """From now on the slot holds these chunks."""
        for digest in self._held[slot]:
            self._owners[digest].discard(slot)
            if not self._owners[digest]:
                del self._owners[digest]
        self._held[slot] = []
        for digest in digests:
            self.add(slot, digest)

    def add(self, slot: int, digest: bytes) -> None:
        self._held[slot].append(digest)
        self._owners[digest].add(slot)
