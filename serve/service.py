"""A loaded model and everything that serves it, from loading to draining."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_jax.config import Config
from qwen_jax.decoding.generation_config import Defaults
from qwen_jax.text.tokenizer import Tokenizer
from serve.adapters import Adapters, Loaded
from serve.cache_memory import Room
from serve.engine.engine import Engine
from serve.engine.metrics import Metrics
from serve.engine.request import Request
from serve.lag import Lag
from serve.lanes import Lanes
from serve.memory import Memory
from serve.settings import ServeConfig
from serve.text.grammar import GUARDS, Grammars


@dataclass(frozen=True)
class Model:
    """What answering needs of a checkpoint."""

    name: str
    adapter: Loaded
    task: str  # generate, embed or rerank
    config: Config
    tokenizer: Tokenizer
    defaults: Defaults
    room: Room  # of the cache
    engine: Engine
    grammars: Grammars
    prefix_scope: Callable[
        [int], int
    ]  # prompt length -> what decides, beside the tokens, on keys and values

    prompts: Mapping[str, str] = field(default_factory=dict)  # texts before others, by name

    def scope(self, tenant: str, length: int) -> str:
        """Texts of this model, of so many tokens, share keys and values within it."""
        return f"{tenant}/{self.adapter.edition}/{self.prefix_scope(length)}"

    @property
    def length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.room.length


class Service:
    """One server's model, numbers and state of life."""

    def __init__(self, settings: ServeConfig):
        self.settings, self.metrics = settings, Metrics()
        self.lanes = Lanes(settings.queue + settings.slots, GUARDS)
        self.memory = Memory(settings.memory_bytes, settings.memory_seconds)
        # what ends an answer that is being written, by owner and id
        self.underway: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {}
        self.lag = Lag(self.metrics.loop_lag.observe)
        self.metrics.watch(
            "event_loop_lag_worst_seconds", "Longest hold-up in the last 10 s", self.lag.worst
        )
        self.model: Model | None = None  # until it is loaded and warm
        self.named: dict[str, Model] = {}  # the same by its other names, and with each adapter
        self.adapters: Adapters | None = None  # those that come and go, where they may
        self.draining = False
        self.stage = "the model is being loaded"
        self.failure = ""  # why the model could not be loaded
        self.created = int(time.time())
        self.metrics.watch("ready", "Whether requests are taken", lambda: not self.trouble)

    def followed(self) -> tuple[int, dict[str, tuple[Request, ...]]]:
        """How many adapters there may be, and who follows each of those there are."""
        named = {name: one.adapter for name, one in self.named.copy().items() if one.adapter.number}
        most = len(named) if self.adapters is None else self.adapters.most
        return most, {name: tuple(one.followers) for name, one in named.items()}

    @property
    def trouble(self) -> str:
        """Why no request can be taken, empty if it can."""
        if self.failure:
            return f"the model cannot be loaded: {self.failure}"
        if self.draining:
            return "the server is shutting down"
        if self.model is None:
            return self.stage
        if not self.model.engine.alive:
            return "the engine has failed"
        return ""
