"""Hugging Face checkpoints to qwen_jax's native format and back; `python -m convert --help`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.export import to_hf
    from convert.native import to_native
    from convert.quantize import QuantizeOptions

__all__ = ["QuantizeOptions", "to_hf", "to_native"]
_HOMES = {"QuantizeOptions": "quantize", "to_hf": "export", "to_native": "native"}


def __getattr__(name: str) -> Any:
    """What is named here is imported when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'convert' has no attribute {name!r}")
    return getattr(importlib.import_module(f"convert.{_HOMES[name]}"), name)
