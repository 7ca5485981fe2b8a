"""While a program imports what needs JAX, which takes most of a second."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from qwen_jax.program import progress


@contextmanager
def of_jax() -> Iterator[None]:
    """What is imported here stays, so no garbage is looked for in it, now or later."""
    gc.disable()
    try:
        with progress.working("starting JAX"):
            yield
    finally:
        gc.freeze()
        gc.enable()
