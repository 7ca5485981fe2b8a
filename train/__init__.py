"""Full, LoRA and Q-LoRA training on one device to a pod; `python -m train --help`."""

from train.loop import NotFinite
from train.run import fine_tune
from train.settings import Settings

__all__ = ["NotFinite", "Settings", "fine_tune"]
