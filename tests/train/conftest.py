"""The vocabularies of the tokenizer's tests, and data files."""

from tests.qwen_jax.conftest import data, oracle, real, real_vocabulary, small, small_folder

__all__ = ["data", "oracle", "real", "real_vocabulary", "small", "small_folder"]
