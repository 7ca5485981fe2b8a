"""Modules that the guides once named elsewhere: the old paths give the same modules."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PATHS = {
    "qwen_jax.chatml": "qwen_jax.text.chatml",
    "qwen_jax.completion": "qwen_jax.decoding.completion",
    "qwen_jax.decode": "qwen_jax.decoding.decode",
    "qwen_jax.integer_matmul": "qwen_jax.nn.quant_matmul",
    "qwen_jax.lora": "qwen_jax.nn.lora",
    "qwen_jax.model": "qwen_jax.nn.model",
    "qwen_jax.native": "qwen_jax.storage.native",
    "qwen_jax.peft": "qwen_jax.adapters.peft",
    "qwen_jax.peft_config": "qwen_jax.adapters.peft_config",
    "qwen_jax.quant": "qwen_jax.nn.quant",
    "qwen_jax.rope": "qwen_jax.nn.rope",
    "qwen_jax.sampling": "qwen_jax.decoding.sampling",
    "qwen_jax.sharding": "qwen_jax.nn.sharding",
    "qwen_jax.tokenizer": "qwen_jax.text.tokenizer",
}


class Moved(MetaPathFinder, Loader):
    """Finds the old paths, and loads them by putting the new module in their place."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in PATHS else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(PATHS[module.__name__])


def install() -> None:
    """Look here for what is not found elsewhere; once is enough."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())
