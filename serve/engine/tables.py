"""The pages of each request: which it found, which it took, and what others may find in them."""

from collections import Counter
from collections.abc import Iterable

from serve.engine.pages import Pages, name, root
from serve.engine.request import Request


class Tables:
    """Requests' tables over one pool of pages; share: whether texts may begin in others' pages."""

    def __init__(self, count: int, size: int, share: bool):
        self._share = share
        self.pages = Pages(count, size)
        self._held: Counter[str] = Counter()

    def held(self, tenant: str) -> int:
        """Pages that stand in a tenant's tables."""
        return self._held[tenant]

    @property
    def tokens(self) -> int:
        """Tokens for which all tables together have room."""
        return self._held.total() * self.pages.size

    def check_size(self, request: Request) -> None:
        """Raises ValueError for a text that all pages together cannot hold."""
        room = self.pages.count * self.pages.size
        wanted = len(request.tokens) + max(0, request.max_new_tokens - 1)
        if wanted > room:
            raise ValueError(
                f"prompt and answer have {wanted} tokens, the cache holds {room}; shorten them or "
                "start the server with a larger --cache-memory"
            )

    def admit(self, request: Request, spare: int) -> bool:
        """Fill a request's table for its text so far, if then so many pages are left for others."""
        whole = self._found(request)
        for page in whole:
            self.pages.hold(page)
        size = self.pages.size
        needed = -(-request.length // size) - len(whole)
        left = spare if self._held.total() else 0
        if needed + left > self.pages.available:
            self.pages.release(whole)
            return False
        request.prefilled, request.published = len(whole) * size, len(whole)
        request.copied, part = self._part(request) if self._share else (-1, 0)
        if part:
            self.pages.hold(request.copied)  # it must not be among those that are taken
        if needed > self.pages.available:
            self.pages.release([request.copied])
            request.copied, part = -1, 0
        request.pages = whole + self.pages.take(needed)
        if part:
            self.pages.release([request.copied])
        request.prefilled += part
        self._held[request.tenant] += len(request.pages)
        return True

    def _found(self, request: Request) -> list[int]:
        """Pages that hold the beginning of its text; a token at least is left to compute."""
        found: list[int] = []
        if self._share and not request.scoring:
            for block in range((request.length - 1) // self.pages.size):
                page = self.pages.find(self._name(request, block))
                if page is None:
                    break
                found.append(page)
        return found

    def _part(self, request: Request) -> tuple[int, int]:
        """A page whose first tokens are the next of the text, and how many."""
        start, size = request.prefilled, self.pages.size
        rest = request.text(start, min(start + size, request.length - 1))
        if request.scoring or not rest:
            return -1, 0
        page, count = self.pages.find_part(self._name(request, start // size - 1), rest)
        return (page, count) if count else (-1, 0)

    def _name(self, request: Request, block: int) -> bytes:
        """Of a whole page of the text; of block -1: where the names begin."""
        names, size = request.names, self.pages.size
        if not names:
            names.append(root(request.prefix_scope))
        while len(names) < block + 2:
            start = (len(names) - 1) * size
            names.append(name(names[-1], request.text(start, start + size)))
        return names[block + 1]

    def advance(self, request: Request) -> list[int]:
        """Exchange its next pages for those that others have filled meanwhile; which."""
        size, found = self.pages.size, []
        while (
            self._share
            and request.prefilled % size == 0
            and (block := request.prefilled // size) < (request.length - 1) // size
            and (page := self.pages.find(self._name(request, block))) is not None
        ):
            self.pages.hold(page)
            self.pages.release([request.pages[block]])
            request.pages[block] = page
            request.prefilled += size
            request.published = block + 1
            found.append(page)
        return found

    def grow(self, request: Request, count: int) -> list[int]:
        """So many more pages at the end of its table; there must be as many available."""
        taken = self.pages.take(count)
        request.pages += taken
        self._held[request.tenant] += count
        return taken

    def publish(self, request: Request) -> None:
        """Let others find the pages that its text has filled."""
        size = self.pages.size
        while self._share and (request.published + 1) * size <= request.prefilled:
            self._publish(request, request.published, size)
            request.published += 1

    def _publish(self, request: Request, block: int, count: int) -> None:
        start = block * self.pages.size
        before, tokens = self._name(request, block - 1), request.text(start, start + count)
        full = self._name(request, block) if count == self.pages.size else b""
        self.pages.publish(request.pages[block], before, tokens, full)

    def release(self, request: Request) -> None:
        """Its table is empty; what it has computed may still be found."""
        self.publish(request)
        size = self.pages.size
        if self._share and request.prefilled % size:
            self._publish(request, request.prefilled // size, request.prefilled % size)
        self.pages.release(request.pages)
        self._held[request.tenant] -= len(request.pages)
        if not self._held[request.tenant]:
            del self._held[request.tenant]
        request.pages, request.prefilled, request.published = [], 0, 0

    def check(self, requests: Iterable[Request]) -> None:
        """Raises AssertionError unless these requests, and no others, hold pages."""
        requests = list(requests)
        self.pages.check(request.pages for request in requests)
        held: Counter[str] = Counter()
        for request in requests:
            held[request.tenant] += len(request.pages)
        assert held == self._held, "a tenant's pages are miscounted"
