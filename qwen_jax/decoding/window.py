"""Prompts that no answer can be right to, since the positions of their tokens mean nothing."""

from qwen_jax.config import Config


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
