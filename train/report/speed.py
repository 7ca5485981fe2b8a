"""How fast a run is: floating-point work, what a device could do at most, and memory."""

import math
import resource
import sys

import jax

from qwen_jax.config import Config
from qwen_jax.nn.quant import abstract_leaves

# bfloat16 products a second, without sparsity, as the makers publish them; the first name that
# occurs in jax's `device_kind` counts
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def peak(kind: str) -> float | None:
    """Floating-point operations a second that a device of this kind reaches at most, if known."""
    return next((peak for name, peak in PEAKS.items() if name in kind), None)


def work(config: Config, trained: int, length: int) -> float:
    """Floating-point operations that a token of a step needs.

    4 for each of the N parameters that multiply (forward, and back to the inputs), 2 for each that
    is trained: 6 N in full, about 4 N with adapters. And attention's 12 L N H T, as PaLM counts it
    (arXiv 2204.02311, appendix B). What is computed again to save memory does not count.
    """
    leaves = abstract_leaves(config)
    if not config.tied:
        del leaves["embed"]  # a row is looked up
    weights = sum(math.prod(leaf.shape) for leaf in leaves.values())
    attention = 12 * config.layers * config.heads * config.head_dim * length
    return 4 * weights + 2 * min(trained, weights) + attention


def memory() -> int:
    """The most bytes in use so far: on the fullest device of this process, or on a CPU by it."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    most = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return most or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
