"""Products by AMX's tiles, wherever tiles are not full; and who does without them."""

import ctypes
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.nn.cpu import registered
from qwen_jax.nn.cpu.kinds import Kind
from tests.qwen_jax.nn.cpu.test_products import CLOSE, made, numbers

pytestmark = pytest.mark.skipif(
    not registered.processor().tiles, reason="needs a processor with AMX, and leave to use it"
)


@pytest.mark.parametrize(("out", "inputs"), [(4, 32), (12, 64), (20, 96), (300, 32), (132, 1120)])
def test_every_edge(out: int, inputs: int) -> None:
    """Right, and the same bits, for all numbers of rows up to two tiles and a bit."""
    call = made(Kind("bfloat16", "bfloat16"), "here")
    x = jnp.asarray(numbers(0, 37, inputs), jnp.bfloat16)
    kernel = jnp.asarray(numbers(1, out, inputs), jnp.bfloat16)
    whole = np.asarray(call(x, kernel))
    wanted = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64).T
    assert np.abs(whole - wanted).max() < CLOSE * np.abs(wanted).max()
    for rows in (*range(1, 20), 31, 32, 33):
        assert (np.asarray(call(x[:rows], kernel)) == whole[:rows]).all()


def test_without_leave_there_are_no_tiles(anew: pytest.MonkeyPatch) -> None:
    here = registered.processor()
    registered.processor.cache_clear()
    refused = SimpleNamespace(syscall=lambda *_: -1)
    anew.setattr(ctypes, "CDLL", lambda _: refused)
    assert registered.processor() == replace(here, tiles=False)


def test_xlas_flag_keeps_tiles_out(anew: pytest.MonkeyPatch) -> None:
    here = registered.processor()
    for isa, tiles in (("AVX512_BF16", False), ("AMX", True)):
        registered._flags.cache_clear()
        registered.processor.cache_clear()
        anew.setenv("XLA_FLAGS", f"--xla_cpu_max_isa={isa}")
        assert registered.processor() == replace(here, tiles=tiles)
        assert ("+amx-tile" in registered._features()) is tiles
