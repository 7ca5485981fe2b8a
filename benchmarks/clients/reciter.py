"""A server whose answers are written down: agents' prompts are longer than a tiny model's window.

All of it is the server's own but for the network, in whose place somebody knows what to say.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qwen_jax
from qwen_jax.decoding.completion import text_tokenizer
from qwen_jax.text import chatml
from serve import loading
from serve.engine.operations import Operation, Piece, Prefill, Result, Step
from serve.http.keys import Keys
from serve.server import Server, bind
from serve.service import Service
from serve.settings import ServeConfig

Answer = Callable[[str], str]  # to a prompt
# as later models have it; that of v1 has no place for two messages of a user in a row
TEMPLATE = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one: <tool_call>{"name": …, "arguments": …}</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or () %}
<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Reciter:
    """The device's part: of each prompt the text, of its answer one token after another."""

    slots, chunk, tile, page, length, pages = 4, 2048, 128, 64, 2**17, 2**13
    draft_tokens = 0

    def __init__(self, tokenizer: Any, answer: Answer):
        self._tokenizer, self._answer = tokenizer, answer
        self._end = tokenizer.specials[chatml.IM_END]
        self._heard: dict[int, list[int]] = {}  # by slot
        self._left: dict[int, list[int]] = {}

    def prefix_scope(self, prompt_length: int) -> int:
        return 0

    def warm(self, tell: Any = None) -> None:
        """There is nothing to compile."""

    def reset(self) -> None:
        self._left.clear()

    def close(self) -> None:
        """Nothing is held."""

    def run(self, turn: Sequence[Operation]) -> list[Any]:
        return [self._start(operation) for operation in turn]

    def read(self, turn: Sequence[Operation], outputs: Sequence[Any]) -> list[Result | None]:
        return list(outputs)

    def _start(self, operation: Operation) -> Result | None:
        match operation:
            case Prefill(pieces):
                return self._said([(piece.slot, self._hear(piece)) for piece in pieces])
            case Step(slots, count):
                return self._said([(slot, self._next(slot, count)) for slot in slots])
        return None

    def _hear(self, piece: Piece) -> list[int]:
        heard = [] if piece.start == 0 else self._heard[piece.slot]
        self._heard[piece.slot] = [*heard, *piece.tokens]
        if not piece.last:
            return []
        text = self._answer(self._tokenizer.decode(self._heard.pop(piece.slot)))
        self._left[piece.slot] = [*self._tokenizer.encode(text), self._end]
        return self._next(piece.slot, 1)

    def _next(self, slot: int, count: int) -> list[int]:
        left = self._left.get(slot, [])
        self._left[slot] = left[count:]
        return left[:count]

    def _said(self, rows: list[tuple[int, list[int]]]) -> Result:
        tokens = [row for _, row in rows]
        going = [bool(self._left.get(slot)) for slot, _ in rows]
        best = lambda row, place, most: [(tokens[row][place], 0.0)][:most]
        return Result(tokens, [[0.0] * len(row) for row in tokens], going, best)


@contextmanager
def reciting(answer: Answer, key: str, folder: Path) -> Iterator[str]:
    """The address of such a server of the bundled model's vocabulary while the context lasts."""
    (folder / "keys").write_text(f"client {key}\n")
    params = qwen_jax.load("demo")
    tokenizer = text_tokenizer(params)
    tokenizer.chat_template = TEMPLATE
    settings = ServeConfig(port=0, slots=Reciter.slots, chunk=Reciter.chunk, prefix_reuse=False)
    listener, service = bind(settings), Service(settings)
    device: Any = Reciter(tokenizer, answer)
    loading.start(service, params, device)
    server = Server(service, Keys.read(folder / "keys"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
