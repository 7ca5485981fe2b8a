"""Functions of whole registers of float32."""

import struct
from collections.abc import Sequence

from llvmlite import ir

from qwen_jax.nn.cpu.code import BYTE, FLOAT, INT16, INT32, Code, Value, vector

# exp(x) = 2^n exp(r) with x = n ln 2 + r and |r| <= ln(2) / 2; the polynomial is that of the
# Cephes library (S. Moshier), whose result is wrong by two units in the last place at most
_SMALLEST = -87.3  # of which exp is a normal number
_LOG2E = 1.44269504088896341
_LN2 = (0.693359375, -2.12194440e-4)  # in two parts, the first of few bits
_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)


def exp(code: Code, x: Value) -> Value:
    """Of x [lanes] that are not above 0; 0 where the result would be no normal number."""
    lanes = x.type.count
    kind = x.type
    fill = lambda value: ir.Constant(kind, [_single(value)] * lanes)
    fma = lambda a, b, c: code.ask(f"llvm.fma.v{lanes}f32", kind, a, b, c)
    small = code.fcmp_ordered("<", x, fill(_SMALLEST))
    x = code.select(small, fill(_SMALLEST), x)
    n = code.ask(f"llvm.nearbyint.v{lanes}f32", kind, code.fmul(x, fill(_LOG2E)))
    for part in _LN2:
        x = fma(n, fill(-part), x)
    y = fill(_TERMS[0])
    for term in _TERMS[1:]:
        y = fma(y, x, fill(term))
    y = fma(code.fmul(y, x), x, code.fadd(x, fill(1.0)))
    wide = vector(INT32, lanes)
    power = code.shl(code.fptosi(n, wide), ir.Constant(wide, [23] * lanes))
    y = code.bitcast(code.add(code.bitcast(y, wide), power), kind)
    y = code.select(small, fill(0.0), y)
    return code.select(code.fcmp_unordered("uno", x, x), x, y)


def rounded(code: Code, x: Value) -> Value:
    """float32 [lanes] -> the bits of the nearest bf16, int16 [lanes], ties to even."""
    lanes = x.type.count
    wide = vector(INT32, lanes)
    fill = lambda value: ir.Constant(wide, [value] * lanes)
    bits = code.bitcast(x, wide)
    odd = code.and_(code.lshr(bits, fill(16)), fill(1))
    up = code.lshr(code.add(code.add(bits, fill(0x7FFF)), odd), fill(16))
    nan = code.fcmp_unordered("uno", x, x)
    return code.trunc(code.select(nan, fill(0x7FC0), up), vector(INT16, lanes))


def quantised(code: Code, parts: Sequence[Value]) -> tuple[list[Value], Value]:
    """A vector's float32 numbers, in registers, as int8, and its scale: see kv_cache.quantize."""
    kind = parts[0].type
    lanes = kind.count
    fill = lambda value: ir.Constant(kind, [value] * lanes)
    top = ir.Constant(FLOAT, 0.0)
    for part in parts:
        one = largest(code, code.ask(f"llvm.fabs.v{lanes}f32", kind, part))
        top = code.select(code.fcmp_ordered(">", one, top), one, top)
    scale = code.fdiv(top, ir.Constant(FLOAT, 127.0))
    wide = code.filled(scale, lanes)
    safe = code.select(code.fcmp_ordered(">", wide, fill(0.0)), wide, fill(1.0))
    nearest = lambda x: code.ask(f"llvm.nearbyint.v{lanes}f32", kind, x)
    codes = [
        code.trunc(
            code.fptosi(nearest(code.fdiv(part, safe)), vector(INT32, lanes)), vector(BYTE, lanes)
        )
        for part in parts
    ]
    return codes, scale


def largest(code: Code, x: Value) -> Value:
    return code.ask(f"llvm.vector.reduce.fmax.v{x.type.count}f32", FLOAT, x)


def total(code: Code, x: Value) -> Value:
    """Always in the same order."""
    while (size := x.type.count) > 1:
        low, high = range(size // 2), range(size // 2, size)
        x = code.fadd(*(code.shuffled(x, x, half) for half in (low, high)))
    return code.extract_element(x, ir.Constant(INT32, 0))


def _single(value: float) -> float:
    """The float32 next to it: LLVM's text takes no other."""
    return struct.unpack("f", struct.pack("f", value))[0]
