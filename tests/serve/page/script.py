"""A device that says what a test wants it to, as fast as it can."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_jax.text.tokenizer import Tokenizer
from serve.engine.operations import Result
from serve.engine.turn import Limits
from tests.serve.fake import Fake, Slot


@dataclass
class Script(Fake):
    """Every answer is `says`, then an end; grammars are obeyed, with the least id they allow."""

    says: Sequence[int]
    end: int
    slots: int = 4
    chunk: int = 32
    length: int = 4096
    pages: int = 2048
    page: int = 16  # tokens
    tile: int = 16
    seconds: float = 0.0  # that a step takes
    draft_tokens: int = 0
    failures: int = 0  # how many of the next operations fail

    def __post_init__(self) -> None:
        limits = Limits(self.slots, self.pages, self.page, self.chunk, 4, 256, self.tile)
        super().__init__(replace(limits, draft_tokens=self.draft_tokens))

    @staticmethod
    def of(tokenizer: Tokenizer, text: str, **how: Any) -> "Script":
        ids = tokenizer.encode(text, specials=tokenizer.markup)
        return Script(says=ids, end=tokenizer.specials["<|im_end|>"], **how)

    def prefix_scope(self, prompt_length: int) -> int:
        return 0

    def _run(self, operation: Any) -> Result | None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the device is on fire")
        return super()._run(operation)

    def _sample(self, slot: Slot, mask: bytes | None = None) -> int:
        place = len(slot.heard) - slot.piece.prompt_length
        id = self.says[place] if place < len(self.says) else self.end
        if mask is not None and not mask[id // 8] >> id % 8 & 1:
            id = next(i for i in range(len(mask) * 8) if mask[i // 8] >> i % 8 & 1)
        slot.heard.append(id)
        stops = slot.piece.settings.stops[0].tolist()
        ends = id in {stop[-1] for stop in stops if stop[-2] < 0}
        slot.active = not ends and place + 1 < slot.piece.max_new_tokens
        return id

    def _step_all(self, slots: Sequence[int], count: int, masks: Mapping[int, bytes]) -> Result:
        time.sleep(self.seconds)
        return super()._step_all(slots, count, masks)
