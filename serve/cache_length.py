"""How many tokens a slot holds: the checkpoint's window where memory allows, or what is asked."""

import jax
from jax.sharding import NamedSharding

from qwen_jax import memory
from qwen_jax.config import Config
from qwen_jax.nn import sharding
from qwen_jax.nn.model import Qwen
from serve.settings import ServeConfig

# Of what is free beside the weights, the part that caches may take by default; programs need the
# rest, on a CPU everybody else on the machine.
SHARES = {"cpu": 0.5}
_SHARE = 0.8


def reason(settings: ServeConfig, config: Config, length: int) -> str:
    """In a few words."""
    if settings.max_length is not None:
        return "--max-length"
    if length >= config.max_length:
        return "the checkpoint's window"
    return (
        f"what memory allows beside {settings.slots} slots, of the checkpoint's window of "
        f"{config.max_length}"
    )


def choose(params: Qwen, settings: ServeConfig) -> int:
    """Tokens of prompt and answer together that a slot holds, a multiple of the chunk.

    Raises ValueError where what is asked for does not fit.
    """
    token = bytes_of_token(params, settings)
    free, platform = memory.free(params.embed.devices())
    fitting = None if free is None else free // token
    return decide(settings, params.config, fitting, SHARES.get(platform, _SHARE))


def decide(settings: ServeConfig, config: Config, fitting: int | None, share: float) -> int:
    """fitting: tokens a slot could have in all memory that is free; None: nobody knows."""
    chunk, wanted = settings.chunk, settings.max_length or config.max_length
    length = -(-wanted // chunk) * chunk
    if settings.max_length is not None and fitting is not None and length > fitting:
        raise ValueError(
            f"--max-length {wanted} for {settings.slots} slots does not fit, memory has room for "
            f"{fitting} tokens in each; ask for fewer, or for fewer --slots, or for a shorter "
            "--cache-dtype"
        )
    if settings.max_length is None and fitting is not None:
        length = max(chunk, min(length, int(fitting * share) // chunk * chunk))
    return length


def check(settings: ServeConfig, config: Config) -> None:
    """Raises ValueError, before anything is loaded, where --max-length cannot fit in any case."""
    if settings.max_length is None:
        return
    free, platform = memory.free(jax.local_devices())
    dtype = settings.cache_dtype or ("float32" if platform == "cpu" else "bfloat16")
    parts = 1 if platform == "cpu" else jax.device_count()
    token = settings.slots * memory.cache(config, dtype) // parts or 1
    decide(settings, config, None if free is None else free // token, 1.0)


def bytes_of_token(params: Qwen, settings: ServeConfig) -> int:
    """What a token of every slot takes on one device; CPUs share their memory."""
    config, mesh = params.config, sharding.mesh_of(params)
    on_cpu = next(iter(params.embed.devices())).platform == "cpu"
    dtype = memory.dtype_of_cache(params, settings.cache_dtype)
    whole = settings.slots * memory.cache(config, dtype)
    if mesh is None or on_cpu:
        return whole
    shape = (settings.slots, config.kv_heads)
    part = NamedSharding(mesh, sharding.spec(mesh, ("slot", "heads"), shape)).shard_shape(shape)
    return whole * part[0] * part[1] // (shape[0] * shape[1])
