"""Full, LoRA and Q-LoRA training on one device to a pod; `python -m train --help`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.loop import NotFinite
    from train.run import fine_tune
    from train.settings import TrainConfig

__all__ = ["NotFinite", "TrainConfig", "fine_tune"]
_HOMES = {"NotFinite": "loop", "TrainConfig": "settings", "fine_tune": "run"}


def __getattr__(name: str) -> Any:
    """What is named here is imported when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"train.{_HOMES[name]}"), name)
