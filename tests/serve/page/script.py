"""A device that says what a test wants it to, as fast as it can."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_jax.text.tokenizer import Tokenizer
from serve.engine.slot_operations import Prefill, Result
from tests.serve.fake import Fake, Slot, result


@dataclass
class Script(Fake):
    """Every answer is `says`, then an end; grammars are obeyed, with the least id they allow."""

    says: Sequence[int] = ()
    end: int = 0
    seconds: float = 0.0  # that a step takes
    failures: int = 0  # how many of the next operations fail
    length: int = 4096

    @staticmethod
    def of(tokenizer: Tokenizer, text: str, **how: Any) -> "Script":
        ids = tokenizer.encode(text, specials=tokenizer.markup)
        how = {"slots": 4, "chunk": 32} | how
        return Script(says=ids, end=tokenizer.specials["<|im_end|>"], **how)

    def prefix_scope(self, prompt_length: int) -> int:
        return 0

    def _run(self, operation: Any) -> Result | None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the device is on fire")
        return super()._run(operation)

    def _next(self, slot: Slot, mask: bytes | None) -> int:
        place = slot.token
        id = self.says[place] if place < len(self.says) else self.end
        if mask is not None and not mask[id // 8] >> id % 8 & 1:
            id = next(i for i in range(len(mask) * 8) if mask[i // 8] >> i % 8 & 1)
        slot.token += 1
        slot.remaining = 0 if (id,) in slot.ends else slot.remaining - 1
        return id

    def _prefill(self, chunk: Prefill) -> Result:
        slot = self.state[chunk.slot]
        slot.held = [*slot.held[: chunk.start], *chunk.tokens]
        if len(slot.held) < chunk.prompt_length:
            return result([[]], [False])
        slot.token, slot.remaining = 0, chunk.max_new_tokens
        stops = [[id for id in row if id >= 0] for row in chunk.settings.stops[0].tolist()]
        slot.ends = {tuple(stop) for stop in stops}
        return result([[self._next(slot, chunk.mask)]], [slot.remaining > 0])

    def _step(self, count: int, masks: Mapping[int, bytes] | None) -> Result:
        time.sleep(self.seconds)
        rows = []
        for number, slot in enumerate(self.state):
            row: list[int] = []
            mask = (masks or {}).get(number)
            while slot.remaining and len(row) < count and mask != b"":
                row.append(self._next(slot, mask))
            rows.append(row)
        return result(rows, [slot.remaining > 0 for slot in self.state])
