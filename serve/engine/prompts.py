"""The texts that are being computed, before their answers go on: a chunk of them in each turn."""

from collections import deque
from collections.abc import Iterator

from serve.engine.operations import Piece, Prefill, Release, ScoreChunk, SetPages
from serve.engine.request import Request
from serve.engine.tables import Tables
from serve.engine.turn import Limits, Turn


class Prompts:
    """Texts in turn. Several short ones share a chunk; a long one takes a chunk, then others do."""

    def __init__(self, limits: Limits, tables: Tables):
        self._limits, self._tables = limits, tables
        self._line: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._line)

    def add(self, request: Request) -> None:
        self._line.append(request)

    def remove(self, request: Request) -> None:
        if request in self._line:
            self._line.remove(request)

    @property
    def unbegun(self) -> int:
        """Tokens of texts of which nothing has been computed, and that wait for nothing else."""
        waits = lambda one: one.given or one.scored or one.constraint
        return sum(one.length - one.prefilled for one in self._line if not waits(one))

    def advance(self, turn: Turn) -> list[Request]:
        """Add a chunk to the turn, in one prefill or several; the texts that end with it."""
        budget, ended = self._limits.chunk, list[Request]()
        while taken := self._prefill(budget, turn, ended):
            budget -= taken
        return ended

    def _prefill(self, budget: int, turn: Turn, ended: list[Request]) -> int:
        """Add the next prefill, and what ends with it to `ended`; tokens of the budget."""
        size = left = self._size(budget)
        pieces: dict[Request, Piece] = {}
        later = []
        for _ in range(len(self._line)):
            if left < self._limits.tile:
                break
            request = self._line.popleft()
            if request.scoring and budget == self._limits.chunk and left == size:
                self._score(request, turn)
                self._line.append(request)
                size, left = budget, 0
            elif not request.scoring and not request.max_new_tokens:
                turn.add(Release(request.slot), {0: request})  # its result ends the request
                ended.append(request)
            elif not request.scoring and (piece := self._piece(request, left, turn)):
                pieces[request] = piece
                left -= self._padded(len(piece.tokens))
                (ended if piece.last else self._line).append(request)
            else:
                later.append(request)
        self._line.extendleft(reversed(later))
        if pieces:
            ends = enumerate(pieces.items())
            readers = {row: request for row, (request, piece) in ends if piece.last}
            turn.add(Prefill(list(pieces.values())), readers)
            for request in pieces:
                self._tables.publish(request)
        return size - left

    def _padded(self, tokens: int) -> int:
        return -(-tokens // self._limits.tile) * self._limits.tile

    def _size(self, budget: int) -> int:
        """Tokens of the next prefill: of a smaller program where two of those are less work."""
        wanted = min(budget, sum(self._padded(one.length - one.prefilled) for one in self._line))
        size = next(size for size in self._limits.sizes if size >= wanted)
        less, least = size // 4, max(self._limits.page, self._limits.tile)
        return less if least <= less < wanted <= 2 * less else min(size, budget)

    def _piece(self, request: Request, budget: int, turn: Turn) -> Piece | None:
        """The next tokens of a text; None where it has to wait."""
        first = request.prefilled // self._limits.page
        if found := self._tables.advance(request):
            turn.add(SetPages(request.slot, first, tuple(found)))
            if not request.preempted:
                request.shared += len(found) * self._limits.page
        start, end = request.prefilled, self._end(request, budget)
        last = end == request.length
        mask = request.constraint.mask() if last and request.constraint is not None else None
        if end == start or mask == b"":
            return None
        piece = Piece(
            request.slot,
            request.text(start, end),
            start,
            len(request.tokens),
            request.settings,
            request.max_new_tokens,
            mask,
            request.adapter,
            last,
            request.text(request.given, start),
        )
        request.prefilled = request.given = end
        request.due = request.bound = int(last)
        return piece

    def _end(self, request: Request, budget: int) -> int:
        """Up to where the next piece of a text goes: where it is cut, pages are whole."""
        start, page = request.prefilled, self._limits.page
        if request.length - start <= budget:
            return request.length
        whole = (start + budget) // page * page
        if whole > start:
            return whole
        return start + budget if budget == self._limits.chunk else start

    def _score(self, request: Request, turn: Turn) -> None:
        """Judge a chunk of a prompt."""
        start, last = request.scored, len(request.tokens) - 1
        end = min(last, start + self._limits.scored)
        tokens, following = request.tokens[start:end], request.tokens[start + 1 : end + 1]
        chunk = ScoreChunk(
            request.slot, tokens, following, start, len(request.tokens), request.adapter
        )
        turn.add(chunk, {0: request})
        request.scored = request.prefilled = end
