"""The device side of serving: operations in, results out; compiles everything beforehand."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from qwen_jax import memory
from qwen_jax.decoding import decode, prefix
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.decoding.logits import SamplingArrays, every_id
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import Output
from qwen_jax.nn.model import Qwen
from serve.engine.slot_operations import (
    CopyPrefix,
    Operation,
    Prefill,
    Release,
    Result,
    ScoreChunk,
    Step,
)

log = logging.getLogger("serve.runner")
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """How many programs this process compiled, and a word in the log for those that came late."""

    def __init__(self) -> None:
        self.count = 0
        self.settled = False  # everything is compiled, as far as anybody knows
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **details: str | int) -> None:
        self.count += event == _COMPILED
        if self.settled and event == _COMPILED:
            log.warning("compiled %s in %.2f s after the warm-up", details, duration_secs)


class ModelRunner:
    """All slots of one model on one device or mesh.

    chunk: most tokens of one prefill, a power of two. length: tokens a slot holds, a multiple of
    it. In a run of several processes each has a Runner and all run the same operations.
    """

    def __init__(
        self,
        params: Qwen,
        slots: int,
        length: int,
        chunk: int,
        step_tokens: int,
        cache_dtype: DTypeLike | None = None,
    ):
        self.weights = flatten(params)
        self.config = params.config
        self.slots, self.length, self.chunk = slots, length, chunk
        self._counts = (1, step_tokens)
        self._sizes = sorted({max(chunk // 4, decode.bucket(1)), chunk})  # of padded chunks
        self._cache_dtype = cache_dtype
        self._every_id = every_id(self.config.vocab)
        self.reset()

    def reset(self) -> None:
        """Empty slots, whatever became of those there were."""
        self._state: Any = None  # first, so that there is room for the new ones
        state = decode.start(self.weights, self.slots, self.length, self._cache_dtype)
        # Parameters that were loaded are bound to their devices and bind what is computed from
        # them. A state that is not would be another kind of argument, and compile everything again.
        bind = lambda x: x if x.committed else jax.device_put(x, x.sharding)
        self._state = jax.tree.map(bind, state)

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
            case CopyPrefix(source, slot, tokens):
                self._state = prefix.copy_prefix(self.weights, self._state, source, slot, tokens)
            case Prefill():
                self._state, output = self._prefill(operation)
            case ScoreChunk(slot, tokens, following, start, prompt_length, adapter):
                self._state, output = prefix.score_chunk(
                    self.weights,
                    self._state,
                    slot,
                    tokens,
                    following,
                    start=start,
                    prompt_length=prompt_length,
                    size=self.chunk,
                    adapter=adapter,
                )
            case Step(count, masks):
                allowed = None if masks is None else self._allowed(masks)
                self._state, output = decode.step(self.weights, self._state, count, allowed)
        return output

    def _prefill(self, wanted: Prefill) -> tuple[Any, Output]:
        return decode.prefill(
            self.weights,
            self._state,
            wanted.slot,
            wanted.tokens,
            start=wanted.start,
            prompt_length=wanted.prompt_length,
            settings=wanted.settings,
            max_new_tokens=wanted.max_new_tokens,
            allowed=None if wanted.mask is None else self._words(wanted.mask)[None],
            size=next(size for size in self._sizes if size >= len(wanted.tokens)),
            adapter=wanted.adapter,
        )

    def _allowed(self, masks: Any) -> np.ndarray:
        rows = np.repeat(self._every_id, self.slots, axis=0)
        for slot, mask in masks.items():
            rows[slot] = self._words(mask)
        return rows

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
        """Run every program that any request may need, so that none is compiled later.

        tell: told how many have been run, of how many.
        """
        operations = list(self.programs())
        for done, operation in enumerate(operations):
            tell(done, len(operations))
            self._start(operation)
        jax.block_until_ready(self._state)
        memory.trim()
        self.reset()

    def programs(self) -> Iterator[Operation]:
        """An operation for each program: sizes of chunks times the windows they may look at."""
        settings = SamplingArrays.of(Sampling(), (), 0)
        starts = [0, self.chunk]
        while starts[-1] * 2 < self.length:
            starts.append(starts[-1] * 2)
        starts = [start for start in starts if start + self.chunk <= self.length]
        for start in starts:
            for size in self._sizes:
                yield Prefill(0, [0] * size, start, self.length, settings, 0)
            yield ScoreChunk(0, [0] * self.chunk, [0] * self.chunk, start, self.length)
            if start:
                yield CopyPrefix(0, 0, [0] * start)
        yield CopyPrefix(0, 0, [0] * (self.length - self.chunk or 1))
        yield Release(0)
        for count in self._counts:
            yield Step(count)
        yield Step(1, {0: b""})


def _result(operation: Operation, output: Any) -> Result:
    if isinstance(operation, ScoreChunk):
        count = len(operation.following)
        return Result(
            tokens=[list(operation.following)],
            logprobs=[output.logprobs[:count].tolist()],
            active=[True],
            best=lambda row, index, most: _pairs(
                output.top_tokens[index, :most], output.top_logprobs[index, :most]
            ),
        )
    return Result(
        tokens=[[token for token in row if token >= 0] for row in output.tokens.tolist()],
        logprobs=output.logprobs.tolist(),
        active=output.active.tolist(),
        best=lambda row, index, most: _pairs(
            output.top_tokens[row, index, :most], output.top_logprobs[row, index, :most]
        ),
    )


def _pairs(ids: np.ndarray, values: np.ndarray) -> list[tuple[int, float]]:
    return list(zip(ids.tolist(), values.tolist(), strict=True))
