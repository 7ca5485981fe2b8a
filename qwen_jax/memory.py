"""How many bytes a model takes: its weights in each precision, its cache, the most at once."""

import ctypes
import mmap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from qwen_jax.config import Config
from qwen_jax.files.sizes import size
from qwen_jax.nn import backends
from qwen_jax.nn.attention import PAGE
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import mesh_of
from qwen_jax.storage.int4 import bits

_GROUPS = (  # version 2 and 1 of cgroups: folder, limit, use
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def by_dtype(leaves: Iterable[Any]) -> dict[str, int]:
    """Bytes of arrays (or their shapes) of each dtype, over all devices; two int4 are a byte."""
    found: dict[str, int] = {}
    for leaf in leaves:
        name = jnp.dtype(leaf.dtype).name
        found[name] = found.get(name, 0) + leaf.size * bits(leaf.dtype) // 8
    return found


def cache(config: Config, dtype: Any) -> int:
    """Bytes of keys and values of one token; int8 comes with a float32 scale for each head."""
    dtype = jnp.dtype(dtype)
    head = config.head_dim * dtype.itemsize + 4 * (dtype == jnp.int8)
    return int(2 * config.layers * config.kv_heads * head)


def dtype_of_cache(
    params: Qwen, asked: DTypeLike | None = None, attention: str | None = None
) -> Any:
    """Of keys and values: as asked, as the checkpoint says, or as what attends has them."""
    if asked is None and params.assets is not None:
        asked = params.assets.defaults.cache_dtype
    x, platform = params.embed.dtype, next(iter(params.embed.devices())).platform
    how = mesh_of(params), False, x, asked
    backend = backends.choose(attention, platform, params.config, PAGE, *how)
    return asked or backends.stored(backend, platform, x)


def peak(params: Qwen) -> int | None:
    """The most bytes that one device held so far; None where it does not say (a CPU)."""
    devices = params.embed.devices()
    found = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    return max((int(n) for n in found if n is not None), default=None)


def free(devices: Iterable[jax.Device]) -> tuple[int | None, str]:
    """Bytes that one of them can still take, and its platform; None where nobody says."""
    devices = list(devices)
    if devices[0].platform == "cpu":
        return _free_of_host(), "cpu"
    stats = [
        device.memory_stats() or {}
        for device in devices
        if device.process_index == jax.process_index()
    ]
    left = [s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if "bytes_limit" in s]
    return min(left, default=None), devices[0].platform


def _free_of_host() -> int | None:
    """What the machine has, or the group of processes this one is in, as containers are."""
    found = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for folder, limit, used in _GROUPS:
        numbers = [line for name in (limit, used) for line in _lines(f"{folder}/{name}")]
        if len(numbers) == 2 and all(number.strip().isdigit() for number in numbers):
            found.append(max(0, int(numbers[0]) - int(numbers[1])))
    return min(found, default=None)


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []


def trim() -> None:
    """Give back what was freed and the C library keeps: a compiler leaves hundreds of MB so.

    Does nothing where the library has no such call.
    """
    if give_back := getattr(ctypes.CDLL(None), "malloc_trim", None):
        give_back(0)


def trimming(growth: int) -> Callable[[], None]:
    """`trim` for those who call it often: only where this process has grown by so many bytes.

    It takes milliseconds, in which nobody else gets memory.
    """
    least = _resident()

    def again() -> None:
        nonlocal least
        if _resident() >= least + growth:
            trim()
            least = _resident()
        least = min(least, _resident())

    return again


def _resident() -> int:
    """Bytes in memory; 0 where the system does not say."""
    return sum(int(line.split()[1]) * mmap.PAGESIZE for line in _lines("/proc/self/statm"))


def summary(weights: Mapping[str, int], caches: Mapping[str, int], most: int | None = None) -> str:
    """One line of all three. caches: bytes of a token in a cache, by its dtype."""
    each = ", ".join(f"{size(count)} {name}" for name, count in sorted(weights.items()))
    line = f"weights {size(sum(weights.values()))} ({each})"
    line += ", cache of a token " + " or ".join(f"{size(n)} {name}" for name, n in caches.items())
    return line if most is None else f"{line}, peak {size(most)} on a device"


def caches(config: Config, *dtypes: Any) -> dict[str, int]:
    """`cache` by the name of each dtype."""
    return {jnp.dtype(dtype).name: cache(config, dtype) for dtype in dtypes}


def of(params: Qwen, cache_dtype: DTypeLike | None = None, attention: str | None = None) -> str:
    """What loaded parameters take, with the cache that generation makes for them."""
    dtype = dtype_of_cache(params, cache_dtype, attention)
    return summary(by_dtype(jax.tree.leaves(params)), caches(params.config, dtype), peak(params))
