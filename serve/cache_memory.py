"""How much the cache holds: what is asked for, or what memory has left, as pages of tokens."""

from dataclasses import dataclass

import jax

from qwen_jax import memory
from qwen_jax.config import Config
from qwen_jax.files.sizes import size
from qwen_jax.nn.heads import Heads
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import mesh_of
from serve.settings import ServeConfig

# Of what is free beside the weights, the part that the cache may take by default; programs need
# the rest, on a CPU everybody else on the machine.
SHARES = {"cpu": 0.5}
_SHARE = 0.8


@dataclass(frozen=True)
class Room:
    """What a cache holds."""

    pages: int
    page: int  # tokens
    length: int  # most tokens of a prompt and its answer

    @property
    def tokens(self) -> int:
        return self.pages * self.page

    def reason(self, settings: ServeConfig, config: Config) -> str:
        """Why it holds as many, in a few words."""
        if settings.cache_memory is not None:
            return f"--cache-memory {settings.cache_memory}"
        if self.pages >= _enough(settings, config, self.page):
            return f"as many as {settings.slots} slots can use"
        return "what memory allows"

    def length_reason(self, settings: ServeConfig, config: Config) -> str:
        """Why texts may be so long, in a few words."""
        if settings.max_length is not None:
            return "--max-length"
        if self.length >= config.max_length:
            return "the checkpoint's window"
        return f"all that the cache holds, of the checkpoint's window of {config.max_length}"


def choose(params: Qwen, settings: ServeConfig, page: int) -> Room:
    """The pages of `page` tokens that fit on each device; raises ValueError where they do not."""
    free, platform = memory.free(params.embed.devices())
    token = bytes_of_token(params, settings)
    share, few = SHARES.get(platform, _SHARE), platform == "cpu"
    return decide(settings, params.config, page, token, free, share, few)


def decide(
    settings: ServeConfig,
    config: Config,
    page: int,
    token: int,
    free: int | None,
    share: float,
    few: bool = False,
) -> Room:
    """token: bytes of a token. free: bytes beside the weights; None: nobody knows.

    few: of what memory allows, a power of two: a computer's free memory is another at every start,
    and programs are kept for the size they were made for.
    """
    asked, longest = settings.cache_bytes, settings.max_length or config.max_length
    if asked is not None and free is not None and asked > free:
        raise ValueError(
            f"--cache-memory {settings.cache_memory} does not fit, {size(free)} are "
            "free; ask for less"
        )
    pages = _enough(settings, config, page) if asked is None else asked // (token * page)
    if asked is None and free is not None:
        allowed = int(free * share) // (token * page)
        pages = min(pages, (1 << allowed.bit_length()) // 2 if few else allowed)
    room = Room(pages, page, min(longest, pages * page))
    wanted = page if settings.max_length is None else settings.max_length
    if room.tokens < wanted:
        option = "" if settings.max_length is None else f"--max-length {wanted} does not fit: "
        raise ValueError(
            f"{option}the cache has room for {room.tokens} tokens, wanted {wanted} or more, which "
            f"take {size(-(-wanted // page) * page * token)}; give it more "
            "--cache-memory, or a shorter --cache-dtype"
        )
    return room


def _enough(settings: ServeConfig, config: Config, page: int) -> int:
    """Pages for the longest text in every slot."""
    return settings.slots * -(-(settings.max_length or config.max_length) // page)


def check(settings: ServeConfig, config: Config) -> None:
    """Raises ValueError, before anything is loaded, for what cannot fit in any case."""
    if settings.max_length is None and settings.cache_bytes is None:
        return
    free, platform = memory.free(jax.local_devices())
    dtype = settings.cache_dtype or "bfloat16"
    parts = 1 if platform == "cpu" else jax.device_count()
    decide(settings, config, 1, memory.cache(config, dtype) // parts or 1, free, 1.0)


def bytes_of_token(params: Qwen, settings: ServeConfig) -> int:
    """What a token takes on a device, which has its part of the heads; CPUs share their memory."""
    config, mesh = params.config, mesh_of(params)
    on_cpu = next(iter(params.embed.devices())).platform == "cpu"
    whole = memory.cache(
        config, memory.dtype_of_cache(params, settings.cache_dtype, settings.attention)
    )
    if mesh is None:
        return whole
    part = Heads.of(config.kv_heads, config.groups, mesh).of_a_device
    return whole * part // config.kv_heads * (mesh.size if on_cpu else 1)
