"""What the terminal chat is started with."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from qwen_jax.command.settings import SAMPLING, Number, SamplingOptions
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.program.limits import RANGES

GROUPS = {"answer": f"system seed {SAMPLING} stop max_new_tokens"}  # of --help


def changed(default: Sampling, changes: Mapping[str, Any]) -> tuple[Sampling, int | None]:
    """All settings after changes, and the most tokens of an answer; ValueError for wrong ones."""
    sampling = dict(changes)
    count = sampling.pop("max_new_tokens", None)
    least, most = RANGES["max_new_tokens"]
    if count is not None and (type(count) is not int or not least <= count <= most):
        raise ValueError(f"max_new_tokens is {count!r}, expected a whole number {least} to {most}")
    return dataclasses.replace(default, **sampling), count


@dataclass(frozen=True, kw_only=True)
class ChatConfig(SamplingOptions):
    """Chat in the terminal."""

    model: str | None = None
    """Native folder, or "demo"; with --url, one of the server's models."""
    url: str | None = None
    """Address of a server, http://localhost:8000; its key is read from QWEN_API_KEY."""
    system: str | None = None
    """System prompt; by default, the model's own."""
    seed: int = 1234
    """Seed of every answer, as in the original."""
    dtype: Number | None = None
    """Type of the parameters; by default, as stored."""
    cache_dtype: Literal[Number, "int8"] | None = None
    """Type of cached keys and values; int8 halves their memory."""
    run_generated_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Consent to run the Python that answers to :code contain, walled in, on this machine."""
    draft_tokens: int | None = None
    """Tokens looked up in the text so far and verified at once, which saves time and changes no
    answer; 0 for none; by default, 4 where that pays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        here = (self.dtype, self.cache_dtype, self.draft_tokens) != (None, None, None)
        if self.url is None and self.model is None:
            raise ValueError("give --model NAME, or --url of a server")
        if self.url is not None and here:
            raise ValueError(
                "--dtype, --cache-dtype and --draft-tokens belong to a model here, not to --url"
            )
