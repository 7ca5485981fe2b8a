"""The network as training runs it: stacked blocks, packed rows, the loss in pieces."""

from typing import Literal

Remat = Literal["none", "dots", "full"]  # what the backward pass computes again
