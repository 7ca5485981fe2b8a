"""Attention over pages in one or two kernels, for each kind of accelerator; see nn.backends."""
