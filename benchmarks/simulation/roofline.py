"""How long devices would take that are not there, by what they publish: an estimate from above.

A product takes as long as its bytes or its sums take, whichever is longer, at the stated part of
the published peaks; and each layer waits twice for the other devices.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwen_jax import memory
from qwen_jax.config import Config
from serve.engine.operations import Operation, Prefill, Step

OF_BANDWIDTH, OF_SUMS = 0.7, 0.5  # what good programs reach of the peaks
SHARE = 0.8  # of the memory beside the weights that the cache may take, as in serve/cache_memory.py


@dataclass(frozen=True)
class Machine:
    """Devices that share each product; published peaks of one."""

    name: str
    devices: int
    sums: float  # bf16, a second
    bandwidth: float  # bytes a second of memory
    memory: float  # bytes
    link: float  # bytes a second to the other devices, one way
    latency: float  # seconds of one reduction over all of them
    page: int  # tokens


MACHINES = (
    Machine("v6e-8", 8, 918e12, 1640e9, 32e9, 180e9, 10e-6, 128),
    Machine("8 H200", 8, 989e12, 4800e9, 141e9, 450e9, 12e-6, 64),
)


class Clock:
    """Seconds of operations of one model, in bf16, on a machine."""

    def __init__(self, config: Config, machine: Machine):
        self.config, self.machine = config, machine
        attention = config.width * config.head_dim * (config.heads + config.kv_heads) * 2
        layer = attention + 3 * config.width * config.mlp
        self._read = config.layers * layer + config.width * config.vocab  # weights of a step
        self.weights = 2 * (self._read + config.width * config.vocab * (not config.tied))
        self.token = memory.cache(config, "bfloat16")

    @property
    def pages(self) -> int:
        """That fit beside the weights, on all devices together."""
        left = self.machine.devices * self.machine.memory - self.weights
        return int(SHARE * left) // (self.token * self.machine.page)

    def seconds(self, operations: Sequence[Operation], held: int) -> float:
        """held: tokens in the cache of the answers under way."""
        total = 0.0
        for operation in operations:
            if isinstance(operation, Step):
                total += operation.count * self._pass(len(operation.slots), held)
            elif isinstance(operation, Prefill):
                tokens = sum(len(piece.tokens) for piece in operation.pieces)
                before = sum(piece.start + len(piece.tokens) for piece in operation.pieces)
                total += self._pass(tokens, before)
        return total

    def _pass(self, tokens: int, held: int) -> float:
        """One pass of so many tokens through the network, beside so many in the cache."""
        machine, config = self.machine, self.config
        size = 2 * self._read + held * self.token
        sums = 2 * self._read * tokens
        reduced = 2 * 2 * tokens * config.width * (machine.devices - 1) / machine.devices
        wait = 2 * config.layers * (machine.latency + reduced / machine.link)
        bytes_seconds = size / (machine.devices * machine.bandwidth * OF_BANDWIDTH)
        sums_seconds = sums / (machine.devices * machine.sums * OF_SUMS)
        return max(bytes_seconds, sums_seconds) + wait

    def stated(self) -> dict[str, Any]:
        """What the estimate rests on."""
        return asdict(self.machine) | {
            "weights_gigabytes": round(self.weights / 1e9, 1),
            "cache_bytes_of_a_token": self.token,
            "cache_tokens": self.pages * self.machine.page,
        }
