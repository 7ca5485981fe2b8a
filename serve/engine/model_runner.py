"""The device side of serving: operations in, results out; compiles everything beforehand."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from qwen_jax import memory
from qwen_jax.decoding import decode, prompts
from qwen_jax.decoding import pieces as pieces_
from qwen_jax.decoding.flat_params import flatten, preparing
from qwen_jax.decoding.logits import SamplingArrays, every_id
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import Output
from qwen_jax.nn.attention import PAGE
from qwen_jax.nn.model import Qwen
from serve.engine.operations import (
    CopyPage,
    Operation,
    Piece,
    Prefill,
    Release,
    Result,
    ScoreChunk,
    SetPages,
    Step,
)
from serve.engine.turn import scored, sizes


class ModelRunner:
    """All slots of one model on one device or mesh, and the pages that they share.

    length: most tokens of a slot. pages: how many, of `page` tokens each. chunk: most tokens of
    one prefill, a power of two, in rows of `tile` that belong to one text each. pools: texts give
    vectors and no tokens, of hidden states, or of the logits of these ids. In a run of several
    processes each has a Runner and all run the same operations.
    """

    page = PAGE

    def __init__(
        self,
        params: Qwen,
        slots: int,
        length: int,
        pages: int,
        chunk: int,
        step_tokens: int,
        cache_dtype: DTypeLike | None = None,
        pools: Sequence[int] | None = None,
        draft_tokens: int = 0,
        attention: str | None = None,
    ):
        self.weights = flatten(params)
        self.config = params.config
        self.slots, self.length, self.pages, self.chunk = slots, length, pages, chunk
        self.tile = max(16, chunk // 16)
        self._step_tokens, self._cache_dtype = step_tokens, cache_dtype
        self._attention, self._pools = attention, pools
        self.draft_tokens = draft_tokens if pools is None else 0
        self._chunk_rows = [size // self.tile for size in sizes(chunk, self.tile)]
        # XLA's products of one row have other bits than those of more
        shadowed = self.draft_tokens > 0 and self.weights.platform == "cpu"
        self._rows = _powers(slots, 1 if self.weights.hosted or shadowed else 2)
        self._every_id = every_id(self.config.vocab)
        self.reset()

    def reset(self) -> None:
        """Empty slots, whatever became of those there were."""
        self._state: Any = None  # first, so that there is room for the new ones
        self._table = np.zeros((self.slots, -(-self.length // PAGE)), np.int32)
        how = self._cache_dtype, self.pages, self._attention, self.draft_tokens
        self._state = decode.start(self.weights, self.slots, self.length, *how)

    def replace(self, place: int, array: Any) -> None:
        """Have another array of the same kind at a place of the weights from the next operation on.

        Nothing is compiled; what is under way ends with the array that it began with.
        """
        leaves = list(self.weights.leaves)
        leaves[place] = array
        self.weights = dataclasses.replace(self.weights, leaves=tuple(leaves))

    def close(self) -> None:
        """Nothing outlives the process."""

    def prefix_scope(self, prompt_length: int) -> int:
        """Prompts may share keys and values where this is equal: dynamic NTK's alpha."""
        trained = self.config.ntk_length
        return 0 if trained is None else ((prompt_length - 1) // trained).bit_length()

    def run(self, operations: Sequence[Operation]) -> list[Any]:
        """Start operations, in order; `read` waits for what they give."""
        return [self._start(operation) for operation in operations]

    def _start(self, operation: Operation) -> Any:
        output: Any = None
        match operation:
            case Release(slot):
                self._state = decode.release(self.weights, self._state, slot)
            case SetPages(slot, first, pages):
                self._table[slot, first : first + len(pages)] = pages
            case CopyPage(source, target):
                self._state = decode.copy_page(self.weights, self._state, source, target)
            case Prefill(pieces):
                output = self._prefill(pieces)
            case ScoreChunk():
                output = self._score(operation)
            case Step(slots, count, masks):
                output = self._step(slots, count, masks)
        return output

    def _prefill(self, wanted: Sequence[Piece]) -> Any:
        pieces = []
        for one in wanted:
            if one.before and self._pools is None:
                at = one.start - len(one.before)
                self._state = prompts.recall(
                    self.weights, self._state, one.slot, one.before, at, one.prompt_length
                )
            pieces.append(
                pieces_.Piece(
                    slot=one.slot,
                    tokens=one.tokens,
                    start=one.start,
                    prompt_length=one.prompt_length,
                    settings=one.settings,
                    max_new_tokens=one.max_new_tokens,
                    last=one.last,
                    allowed=None if one.mask is None else self._words(one.mask)[None],
                    adapter=one.adapter,
                )
            )
        needed = sum(pieces_.rows_of(len(piece.tokens), self.tile) for piece in pieces)
        rows = next(rows for rows in self._chunk_rows if rows >= needed)
        compute: Any = prompts.prefill
        if self._pools is not None:
            compute = functools.partial(prompts.pool, ids=self._pools or None)
        self._state, output = compute(
            self.weights,
            self._state,
            pieces,
            self._table,
            tile=self.tile,
            rows=rows,
            count=rows,
        )
        return output

    def _score(self, wanted: ScoreChunk) -> prompts.Scores:
        self._state, scores = prompts.score_chunk(
            self.weights,
            self._state,
            wanted.slot,
            wanted.tokens,
            wanted.following,
            start=wanted.start,
            prompt_length=wanted.prompt_length,
            tile=self.tile,
            rows=scored(self._chunk_rows),
            adapter=wanted.adapter,
            table=self._table,
        )
        return scores

    def _step(self, slots: Sequence[int], count: int, masks: Mapping[int, bytes] | None) -> Output:
        rows = next(rows for rows in self._rows if rows >= len(slots))
        chosen = np.full(rows, self.slots, np.int32)
        chosen[: len(slots)] = slots
        allowed = np.repeat(self._every_id, len(chosen), axis=0)
        for row, slot in enumerate(slots):
            if masks is not None and slot in masks:
                allowed[row] = self._words(masks[slot])
        self._state, output = decode.step(
            self.weights,
            self._state,
            count,
            allowed,
            slots=chosen,
            table=self._table[np.minimum(chosen, self.slots - 1)],
            width=self._step_tokens,
            drafting=masks is None,
        )
        return output

    def _words(self, mask: bytes) -> np.ndarray:
        """A mask as 32 bit words; ids past its end are not allowed."""
        words = np.zeros(self._every_id.shape[1], np.uint32)
        found = np.frombuffer(mask, "<u4")[: len(words)]
        words[: len(found)] = found
        return words

    def read(self, operations: Sequence[Operation], outputs: Sequence[Any]) -> list[Result | None]:
        """Results of operations that `run` started."""
        pairs = zip(operations, outputs, strict=True)
        return [None if out is None else _result(op, jax.device_get(out)) for op, out in pairs]

    # --- warm-up -------------------------------------------------------------------------------
    def warm(self, tell: Callable[[int, int], None] = lambda done, count: None) -> None:
        """Make every program that any request may need, so that none is compiled later.

        Programs that are kept need not run: on a CPU, long prompts of a large model take minutes.
        tell: told how many have been made, of how many.
        """
        operations = list(self.programs())
        with preparing(self.weights.platform == "cpu") as made:
            for done, operation in enumerate(operations):
                tell(done, len(operations))
                self._start(operation)
        programs = list(dict.fromkeys(made))
        for done, program in enumerate(programs):
            tell(done, len(programs))
            program.result()
        jax.block_until_ready(self._state)
        memory.trim()
        self.reset()

    def programs(self) -> Iterator[Operation]:
        """An operation for each program: sizes of prefills, and numbers of answers in a step."""
        settings = SamplingArrays.of(Sampling(), (), 0)
        for rows in self._chunk_rows:
            tokens = [0] * (rows * self.tile)
            yield Prefill([Piece(0, tokens, 0, len(tokens), settings, 0)])
        yield CopyPage(0, 0)
        yield Release(0)
        if self._pools is not None:
            return
        yield Prefill([Piece(0, [0], 1, 2, settings, 0, before=[0])])
        yield ScoreChunk(0, [0], [0], 0, 1)
        for rows in self._rows:
            yield Step(range(min(rows, self.slots)), 1)


def _powers(slots: int, least: int) -> list[int]:
    """`least`, twice that and so on, up to as many rows as there are slots."""
    powers = [least]
    while powers[-1] < slots:
        powers.append(2 * powers[-1])
    return powers


def _result(operation: Operation, output: Any) -> Result:
    match operation:
        case ScoreChunk(following=following):
            return Result(
                tokens=[list(following)],
                logprobs=[output.logprobs[: len(following)].tolist()],
                active=[True],
                best=lambda row, index, most: _pairs(
                    output.top_tokens[index, :most], output.top_logprobs[index, :most]
                ),
            )
        case Prefill(pieces=pieces) if isinstance(output, np.ndarray):
            none: list[Any] = [[] for _ in pieces]
            return Result(none, none, [False for _ in pieces], lambda *_: [], list(output))
        case Step(slots=rows) | Prefill(pieces=rows):
            return Result(
                tokens=[
                    [token for token in row if token >= 0]
                    for row in output.tokens[: len(rows)].tolist()
                ],
                logprobs=output.logprobs[: len(rows)].tolist(),
                active=output.active[: len(rows)].tolist(),
                drafts=() if output.drafts is None else output.drafts[: len(rows)].tolist(),
                best=lambda row, index, most: _pairs(
                    output.top_tokens[row, index, :most], output.top_logprobs[row, index, :most]
                ),
            )
    raise AssertionError(operation)


def _pairs(ids: np.ndarray, values: np.ndarray) -> list[tuple[int, float]]:
    return list(zip(ids.tolist(), values.tolist(), strict=True))
