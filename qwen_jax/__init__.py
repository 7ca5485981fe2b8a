"""Qwen in pure JAX: convert a checkpoint, run it sharded, fine-tune it, serve it.

>>> import qwen_jax
>>> params = qwen_jax.load("qwen-7b-chat")
>>> reply, history = qwen_jax.chat(params, "你好")

Installing qwen_jax brings four top-level packages, qwen_jax, convert, train and serve, and the
command `qwen-jax`. What is named here is imported when it is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qwen_jax import moved

if TYPE_CHECKING:
    from qwen_jax.checkpoint import load, save
    from qwen_jax.config import Config
    from qwen_jax.conversation import chat, stream_chat
    from qwen_jax.decoding.sampling import Sampling
    from qwen_jax.embeddings import embed
    from qwen_jax.generate import generate, logits, stream

__all__ = [
    "Config",
    "Sampling",
    "chat",
    "embed",
    "generate",
    "load",
    "logits",
    "save",
    "stream",
    "stream_chat",
]
_HOMES = {
    "Config": "config",
    "Sampling": "decoding.sampling",
    "embed": "embeddings",
    **dict.fromkeys(("load", "save"), "checkpoint"),
    **dict.fromkeys(("generate", "logits", "stream"), "generate"),
    **dict.fromkeys(("chat", "stream_chat"), "conversation"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(importlib.import_module(f"qwen_jax.{_HOMES[name]}"), name)
    elif f"qwen_jax.{name}" in moved.PATHS:
        found = importlib.import_module(f"qwen_jax.{name}")
    else:
        raise AttributeError(f"module 'qwen_jax' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`qwen_jax.generate` is the function, though importing its file would name the module so."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
moved.install()
