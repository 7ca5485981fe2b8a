"""How long a prompt and its answer may be: what cannot be right, and what may not be."""

import warnings
from numbers import Integral

from qwen_jax.config import Config

_MOST = 2**30  # new tokens that 32 bits can count, with a prompt


def budget(config: Config, longest: int, max_new_tokens: int) -> int:
    """The new tokens, if a prompt of `longest` may have so many; a warning past the window."""
    whole = isinstance(max_new_tokens, Integral) and not isinstance(max_new_tokens, bool)
    if not whole or not 0 < max_new_tokens <= _MOST:
        raise ValueError(f"got max_new_tokens {max_new_tokens!r}, wanted 1 to {_MOST}")
    check_prompt(config, longest)
    if longest + max_new_tokens > config.max_length:
        warnings.warn(
            f"prompt and answer may take {longest + max_new_tokens} tokens, this checkpoint is "
            f"made for {config.max_length}; the text may lose its thread past that",
            stacklevel=3,
        )
    return max_new_tokens


def check_prompt(config: Config, length: int) -> None:
    """Raise ValueError for a prompt of so many tokens that no answer to it could be right.

    Dynamic NTK stretches as far as a prompt is long; YaRN and plain positions end.
    """
    most = config.max_length
    if config.yarn is not None:
        most = max(most, round(config.yarn.factor * config.yarn.original_length))
    if length > most and config.ntk_length is None:
        raise ValueError(
            f"the prompt has {length} tokens, this checkpoint reads {most} at most; shorten it, or "
            "take a checkpoint with a longer window"
        )
