"""Products in machine code of our own, against float64, for this processor and for lesser ones."""

import ctypes
import functools
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
from qwen_jax.nn.cpu.tiles import short
from qwen_jax.nn.cpu.weights import Processor
from qwen_jax.nn.model import Linear
from qwen_jax.nn.quant import QuantLinear, quantize

LESSER = {
    "bf16": Processor(16, 32, pairs=True, tables=True, tiles=False),
    "avx512": Processor(16, 32, pairs=False, tables=True, tiles=False),
    "avx2": Processor(8, 16, pairs=False, tables=False, tiles=False),
    "neon": Processor(4, 32, pairs=False, tables=False, tiles=False),
}
EACH = [(on, dtype) for on in ("here", *LESSER) for dtype in ("float32", "bfloat16")]
for same in ("bf16", "avx512"):
    EACH.remove((same, "float32"))  # as it is here
BOTH = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
CLOSE = 2e-6  # of the largest; float32 in any order


def made(kind: Kind, on: str) -> Any:
    """The product as JAX calls it, made for a processor."""
    if on == "bf16" and not registered.processor().pairs:
        pytest.skip("needs a processor that multiplies pairs of bf16")
    name = kind.name if on == "here" else f"{kind.name}_{on}"
    registered.register(kind, name, LESSER.get(on))

    def call(x: Any, weights: Any, *more: Any) -> Any:
        shape = jax.ShapeDtypeStruct((x.shape[0], weights.shape[0]), jnp.float32)
        return jax.ffi.ffi_call(name, shape)(x, jnp.int32(0), weights, *more)

    return jax.jit(call)


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def expect_right(call: Any, x: Any, operands: Any, kernel: Any) -> None:
    """Right for every number of rows, with the same bits whatever is in the rows beside one."""
    x = np.asarray(x)
    spoilt = x.copy()
    spoilt[1::2], spoilt[2] = np.nan, np.inf
    every = jax.jit(lambda xs, operands: [call(x, *operands) for x in xs])  # compiled as one
    whole, one, some, beside = map(np.asarray, every([x, x[:1], x[:7], spoilt], operands))
    wanted = x.astype(np.float64) @ np.asarray(kernel, np.float64).T
    assert np.abs(whole - wanted).max() < CLOSE * np.abs(wanted).max()
    assert (one == whole[:1]).all()
    assert (some == whole[:7]).all()
    kept = [n for n in range(0, len(x), 2) if n != 2]
    assert (beside[kept] == whole[kept]).all()


@pytest.mark.parametrize(("on", "dtype"), EACH)
def test_floats(dtype: str, on: str) -> None:
    call = made(Kind(dtype, dtype), on)
    # one run of outputs, and several; one of inputs, and several
    for out, inputs in ((4, 32), (1028, 320), (60, 2080)):
        x = jnp.asarray(numbers(0, 27, inputs), dtype)
        kernel = jnp.asarray(numbers(1, out, inputs), dtype)
        expect_right(call, x, [kernel], kernel)


def codes_of(layer: QuantLinear) -> Any:
    """As a CPU has them."""
    groups = layer.scales.shape[1]
    halves = layer.bits == 4
    return quant_matmul.halved(layer.codes, groups) if halves else layer.codes


@functools.cache
def quantised(bits: int, group: int | None, zeros: bool) -> tuple[list[Any], Any]:
    """Operands of a product, and the weights that they stand for."""
    layer = quantize(Linear(jnp.asarray(numbers(2, 516, 384)), None), bits, group, not zeros)
    operands = [codes_of(layer), layer.scales, *([layer.zeros] if zeros else [])]
    return operands, np.asarray(layer.kernel)


@pytest.mark.parametrize(("on", "dtype"), EACH)
@pytest.mark.parametrize("zeros", [False, True], ids=["even", "zeros"])
@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 64), (4, None), (4, 128), (4, 32)])
def test_integers(bits: int, group: int | None, zeros: bool, dtype: str, on: str) -> None:
    size = group or 384
    less = bits == 4 and short(dtype, size, LESSER.get(on, registered.processor()))
    assert less is not None
    kind = Kind(dtype, f"int{bits}", group is not None, zeros, less)
    call = made(kind, on)
    operands, kernel = quantised(bits, group, zeros)
    expect_right(call, jnp.asarray(numbers(3, 15, 384), dtype), operands, kernel)


@pytest.mark.parametrize(("group", "allowed"), [(32, 1e-6), (128, 3e-6), (None, 2e-4)])
def test_what_int4_loses_where_x_has_a_mean(group: int | None, allowed: float) -> None:
    """Without tables eight times the sum of x is added and taken off again."""
    kernel = jnp.asarray(numbers(2, 64, 4096))
    layer = quantize(Linear(kernel, None), 4, group, True)
    x = 1 + numbers(3, 4, 4096)
    wanted = x.astype(np.float64) @ np.asarray(layer.kernel, np.float64).T
    call = made(Kind("float32", "int4", group is not None, False, group == 32), "avx2")
    got = np.asarray(call(x, codes_of(layer), layer.scales))
    assert np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean()) < allowed


def test_which_kinds_there_are() -> None:
    ones = jnp.ones
    assert floats_kind(ones((8, 64))) == Kind("float32", "float32")
    for kernel in (ones((6, 64)), ones((8, 40), jnp.bfloat16), ones((8, 64), jnp.float16)):
        assert floats_kind(kernel) is None  # outputs, inputs and type that none takes
    assert floats_kind(ones((8, 0))) is floats_kind(ones((0, 64))) is None
    layer = quantize(Linear(jnp.asarray(numbers(4, 8, 128)), None), 4, 64, False)
    known = (codes_of(layer), layer.scales, layer.zeros)
    assert integers_kind("bfloat16", *known) == Kind("bfloat16", "int4", True, True)
    assert integers_kind("float16", *known) is None
    assert integers_kind("float32", *known[:2], jnp.zeros((8, 2), jnp.int32)) is None
    assert integers_kind("float32", known[0], known[1].astype(jnp.float32), None) is None
    assert integers_kind("float32", layer.codes, known[1], None) is None  # int4 in whole rows
    assert integers_kind("float32", codes_of(layer)[:6], known[1][:6], None) is None


def test_xlas_flag_keeps_features_out(anew: pytest.MonkeyPatch) -> None:
    anew.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX512 --xla_cpu_max_isa=AVX2")
    assert not registered.processor().tables
    assert registered.processor().lanes < 16
    assert "+avx512f" not in registered._features()


@BOTH
def test_many_threads_at_once(dtype: str) -> None:
    """Each takes turns of its own products, and helps with others'; none waits for ever."""
    call = made(Kind(dtype, dtype), "here")
    kernel = jnp.asarray(numbers(5, 2048, 256), dtype)
    xs = [jnp.asarray(numbers(6 + n, 1 + 9 * n, 256), dtype) for n in range(6)]
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


@BOTH
def test_what_threads_share_is_freed(dtype: str) -> None:
    """By whoever leaves last: of thousands of calls nothing is left."""
    held = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if held is None:
        pytest.skip("needs the GNU C library")

    class Info(ctypes.Structure):
        _fields_ = tuple((f"field_{n}", ctypes.c_size_t) for n in range(10))

    held.restype = Info
    call = made(Kind(dtype, dtype), "here")
    x, kernel = jnp.ones((1, 64), dtype), jnp.ones((2048, 64), dtype) / 1024  # runs of outputs
    step = lambda _, x: call(x, kernel)[:, :64].astype(dtype)
    loop = jax.jit(lambda x, count: jax.lax.fori_loop(0, count, step, x))
    loop(x, 10).block_until_ready()
    before = held().field_7  # bytes that are in use
    loop(x, 8_000).block_until_ready()
    assert held().field_7 - before < 8_000 * 50


def test_memory_that_is_aligned_to_its_numbers_alone() -> None:
    call = made(Kind("bfloat16", "bfloat16"), "here")
    room = np.zeros(2 * (64 * 96 + 33), np.uint8)
    for shift in range(2, 66, 16):
        part = room[shift : shift + 2 * 64 * 96].view(jnp.bfloat16).reshape(64, 96)
        part[:] = numbers(7, 64, 96).astype(jnp.bfloat16)
        x = jnp.asarray(numbers(8, 3, 96), jnp.bfloat16)
        wanted = np.asarray(x, np.float64) @ part.astype(np.float64).T
        assert np.abs(np.asarray(call(x, jnp.asarray(part))) - wanted).max() < 1e-4


@BOTH
def test_no_rows(dtype: str) -> None:
    call = made(Kind(dtype, dtype), "here")
    assert call(jnp.ones((0, 64), dtype), jnp.ones((8, 64), dtype)).shape == (0, 8)
