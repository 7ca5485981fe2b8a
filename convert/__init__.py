"""Hugging Face checkpoints to qwen_jax's native format and back; `python -m convert --help`."""

from convert.export import to_hf
from convert.native import to_native
from convert.quantize import QuantizeOptions

__all__ = ["QuantizeOptions", "to_hf", "to_native"]
