"""Full, LoRA and Q-LoRA training on one device to a pod; `python -m train --help`."""

from train.loop import NotFinite
from train.run import fine_tune
from train.settings import TrainConfig

__all__ = ["NotFinite", "TrainConfig", "fine_tune"]
