"""Products in machine code of our own, against float64, for this processor and for lesser ones."""

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.nn import quant_matmul
from qwen_jax.nn.cpu import registered
from qwen_jax.nn.cpu.kinds import Kind
from qwen_jax.nn.cpu.layers import floats_kind, integers_kind
from qwen_jax.nn.cpu.weights import Processor, arithmetic
from qwen_jax.nn.model import Linear
from qwen_jax.nn.quant import QuantLinear, quantize

LESSER = {
    "avx512": Processor(16, 32, False, True),
    "avx2": Processor(8, 16, False, False),
    "neon": Processor(4, 32, False, False),
}
FLOATS = ("float32", "bfloat16")
CLOSE = 2e-6  # of the largest; float32 in any order


def made(kind: Kind, on: str) -> Any:
    """The product as JAX calls it, made for a processor."""
    name = kind.name if on == "here" else f"{kind.name}_{on}"
    registered.register(kind, name, LESSER.get(on))

    def call(x: Any, weights: Any, *more: Any) -> Any:
        shape = jax.ShapeDtypeStruct((x.shape[0], weights.shape[0]), jnp.float32)
        return jax.ffi.ffi_call(name, shape)(x, weights, *more)

    return jax.jit(call)


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def expect_right(call: Any, x: Any, operands: Any, kernel: Any) -> None:
    """Right for every number of rows, with the same bits whatever is in the rows beside one."""
    wanted = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64).T
    whole = np.asarray(call(x, *operands))
    assert np.abs(whole - wanted).max() < CLOSE * np.abs(wanted).max()
    for rows in (1, 7):
        assert (np.asarray(call(x[:rows], *operands)) == whole[:rows]).all()
    spoilt = x.at[1::2].set(jnp.nan).at[2].set(jnp.inf)
    kept = [n for n in range(0, len(x), 2) if n != 2]
    assert (np.asarray(call(spoilt, *operands))[kept] == whole[kept]).all()


@pytest.mark.parametrize("on", ["here", *LESSER])
@pytest.mark.parametrize("dtype", FLOATS)
def test_floats(dtype: str, on: str) -> None:
    call = made(Kind(dtype, dtype), on)
    for out, inputs in ((4, 32), (1028, 320)):  # one run of outputs, and several
        x = jnp.asarray(numbers(0, 27, inputs), dtype)
        kernel = jnp.asarray(numbers(1, out, inputs), dtype)
        expect_right(call, x, [kernel], kernel)


def codes_of(layer: QuantLinear) -> Any:
    """As a CPU has them."""
    groups = layer.scales.shape[1]
    halves = layer.bits == 4
    return quant_matmul.halved(layer.codes, groups) if halves else layer.codes


@pytest.mark.parametrize("on", ["here", *LESSER])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("zeros", [False, True], ids=["even", "zeros"])
@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 64), (4, 128), (4, 32)])
def test_integers(bits: int, group: int | None, zeros: bool, dtype: str, on: str) -> None:
    size = group or 384
    width = arithmetic(dtype, LESSER.get(on, registered.processor())).width
    short = bits == 4 and size == width
    kind = Kind(dtype, f"int{bits}", group is not None, zeros, short)
    call = made(kind, on)
    layer = quantize(Linear(jnp.asarray(numbers(2, 516, 384)), None), bits, group, not zeros)
    operands = [codes_of(layer), layer.scales, *([layer.zeros] if zeros else [])]
    expect_right(call, jnp.asarray(numbers(3, 15, 384), dtype), operands, layer.kernel)


def test_which_kinds_there_are() -> None:
    ones = jnp.ones
    assert floats_kind(ones((8, 64))) == Kind("float32", "float32")
    for kernel in (ones((6, 64)), ones((8, 40), jnp.bfloat16), ones((8, 64), jnp.float16)):
        assert floats_kind(kernel) is None  # outputs, inputs and type that none takes
    layer = quantize(Linear(jnp.asarray(numbers(4, 8, 128)), None), 4, 64, False)
    known = (codes_of(layer), layer.scales, layer.zeros)
    assert integers_kind("bfloat16", *known) == Kind("bfloat16", "int4", True, True)
    assert integers_kind("float16", *known) is None
    assert integers_kind("float32", known[0], known[1].astype(jnp.float32), None) is None
    assert integers_kind("float32", layer.codes, known[1], None) is None  # int4 in whole rows
    assert integers_kind("float32", codes_of(layer)[:6], known[1][:6], None) is None


def test_xlas_flag_keeps_features_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    registered._flags.cache_clear()
    registered.processor.cache_clear()
    try:
        assert not registered.processor().tables
        assert registered.processor().lanes < 16
        assert "+avx512f" not in registered._features()
    finally:
        monkeypatch.undo()
        registered._flags.cache_clear()
        registered.processor.cache_clear()


def test_many_threads_at_once() -> None:
    """Each takes runs of its own products, and helps with others'; none waits for ever."""
    call = made(Kind("float32", "float32"), "here")
    kernel = jnp.asarray(numbers(5, 2048, 256))
    xs = [jnp.asarray(numbers(6 + n, 1 + n, 256)) for n in range(6)]
    wanted = [np.asarray(call(x, kernel)) for x in xs]
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(50):
            if not (np.asarray(call(xs[n], kernel)) == wanted[n]).all():
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_memory_that_is_aligned_to_its_numbers_alone() -> None:
    call = made(Kind("bfloat16", "bfloat16"), "here")
    room = np.zeros(2 * (64 * 96 + 33), np.uint8)
    for shift in range(2, 66, 16):
        part = room[shift : shift + 2 * 64 * 96].view(jnp.bfloat16).reshape(64, 96)
        part[:] = numbers(7, 64, 96).astype(jnp.bfloat16)
        x = jnp.asarray(numbers(8, 3, 96), jnp.bfloat16)
        wanted = np.asarray(x, np.float64) @ part.astype(np.float64).T
        assert np.abs(np.asarray(call(x, jnp.asarray(part))) - wanted).max() < 1e-4


def test_no_rows() -> None:
    call = made(Kind("float32", "float32"), "here")
    assert call(jnp.ones((0, 64)), jnp.ones((8, 64))).shape == (0, 8)
