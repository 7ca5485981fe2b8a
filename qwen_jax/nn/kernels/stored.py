"""Keys and values as kernels take them: pages of numbers, and beside int8 their scales."""

from jax import Array

Pair = tuple[Array, Array | None]  # keys or values [P K page H], the scales of int8 [P K page]


def arrays(keys: Pair, values: Pair) -> list[Array]:
    """What there is: numbers of keys and of values, then scales of both."""
    return [x for pair in zip(keys, values, strict=True) for x in pair if x is not None]


def pairs(arrays: list[Array]) -> tuple[Pair, Pair]:
    """The keys and values that such arrays are of."""
    keys, values, *scales = arrays
    key_scale, value_scale = scales or (None, None)
    return (keys, key_scale), (values, value_scale)
