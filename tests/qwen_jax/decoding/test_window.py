"""Prompts past a checkpoint's window."""

from dataclasses import replace

import pytest

from qwen_jax.config import Config, Yarn
from qwen_jax.decoding import generation_config
from tests.qwen_jax.networks import QWEN2

CONFIG = replace(Config.from_hf(QWEN2), max_length=512, ntk_length=None, yarn=None)


def test_a_prompt_that_cannot_be_answered_rightly_is_refused() -> None:
    generation_config.check_prompt(CONFIG, 512)
    with pytest.raises(ValueError, match="the prompt has 513 tokens, this checkpoint reads 512 at"):
        generation_config.check_prompt(CONFIG, 513)


def test_positions_that_stretch() -> None:
    """Dynamic NTK does as far as a prompt is long, YaRN by its factor."""
    generation_config.check_prompt(replace(CONFIG, ntk_length=512), 100_000)
    yarn = replace(CONFIG, yarn=Yarn(4.0, 512, 32.0, 1.0, 1.0, True))
    generation_config.check_prompt(yarn, 2048)
    with pytest.raises(ValueError, match="reads 2048 at most"):
        generation_config.check_prompt(yarn, 2049)
