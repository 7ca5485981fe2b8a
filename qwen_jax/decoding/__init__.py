"""Inference: the jitted functions, how tokens are chosen, and the loop around them."""
