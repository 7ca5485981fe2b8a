"""The network as training runs it: stacked blocks, packed rows, the loss in pieces."""
