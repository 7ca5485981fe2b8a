"""Adapters in PEFT's format: read, added to a network, extracted from it, written."""

from qwen_jax.adapters.attach import add, add_all, check, extract, fresh, merger

__all__ = ["add", "add_all", "check", "extract", "fresh", "merger"]
