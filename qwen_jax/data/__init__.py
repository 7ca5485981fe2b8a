"""Conversations and texts in files, for training and calibration: JSON, JSON lines, plain text."""

from typing import Literal

LossOn = Literal["turns", "assistant"]  # what is learnt of a conversation; `examples` says more
