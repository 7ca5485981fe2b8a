"""How numbers are read and multiplied: an arithmetic for x, a reader for every kind of weight."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from llvmlite import ir

from qwen_jax.nn.cpu.code import (
    BFLOAT,
    BYTE,
    FLOAT,
    INT16,
    INT32,
    Code,
    Value,
    number,
    vector,
)


@dataclass(frozen=True)
class Processor:
    """What of a processor decides how a product is written."""

    lanes: int  # float32 numbers of a register
    registers: int
    pairs: bool  # it multiplies pairs of bf16 and adds them (AVX512-BF16)
    tables: bool  # it looks numbers up by the registerful (AVX-512)
    tiles: bool  # it multiplies tiles of bf16 (AMX)


class Arithmetic(Protocol):
    """Of sums of products, `lanes` of them beside each other, `width` products at a time."""

    @property
    def lanes(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def size(self) -> int: ...  # bytes of a number of x

    @property
    def tables(self) -> bool: ...  # whether it can look numbers up

    def numbers(self, code: Code, address: Value) -> Value:
        """`width` numbers of x's type."""
        ...

    def integers(self, code: Code, values: Value) -> Value:
        """The same from int32; they are so small that it is exact."""
        ...

    def looked_up(self, code: Code, table: Value, places: Value) -> Value:
        """The numbers of a table at the low four bits of bytes."""
        ...

    def added(self, code: Code, sums: Value, a: Value, b: Value) -> Value: ...


@dataclass(frozen=True)
class Singles:
    """In float32; x is float32, or bf16 that is widened."""

    lanes: int
    size: int
    tables: bool

    @property
    def width(self) -> int:
        return self.lanes

    def numbers(self, code: Code, address: Value) -> Value:
        if self.size == 4:
            return code.read(address, vector(FLOAT, self.lanes))
        wide = vector(INT32, self.lanes)
        bits = code.zext(code.read(address, vector(INT16, self.lanes)), wide)
        shifted = code.shl(bits, ir.Constant(wide, [16] * self.lanes))
        return code.bitcast(shifted, vector(FLOAT, self.lanes))

    def integers(self, code: Code, values: Value) -> Value:
        return code.sitofp(values, vector(FLOAT, self.lanes))

    def looked_up(self, code: Code, table: Value, places: Value) -> Value:
        wide = code.zext(places, vector(INT32, self.lanes))
        return code.ask("llvm.x86.avx512.permvar.sf.512", table.type, table, wide)

    def added(self, code: Code, sums: Value, a: Value, b: Value) -> Value:
        return multiplied(code, sums, a, b)


@dataclass(frozen=True)
class Pairs:
    """bf16 with bf16, two products at a time into a float32."""

    lanes = 16
    width = 32
    size = 2
    tables = True

    def numbers(self, code: Code, address: Value) -> Value:
        return code.read(address, vector(BFLOAT, self.width))

    def integers(self, code: Code, values: Value) -> Value:
        floats = code.sitofp(values, vector(FLOAT, self.width))
        return code.fptrunc(floats, vector(BFLOAT, self.width))

    def looked_up(self, code: Code, table: Value, places: Value) -> Value:
        words = vector(INT16, self.width)
        wide, numbers = code.zext(places, words), code.bitcast(table, words)
        found = code.ask("llvm.x86.avx512.permvar.hi.512", words, numbers, wide)
        return code.bitcast(found, table.type)

    def added(self, code: Code, sums: Value, a: Value, b: Value) -> Value:
        return code.ask("llvm.x86.avx512bf16.dpbf16ps.512", sums.type, sums, a, b)


def arithmetic(x: str, processor: Processor) -> Arithmetic:
    """What suits x of type "float32" or "bfloat16"."""
    if x == "bfloat16" and processor.pairs:
        return Pairs()
    return Singles(processor.lanes, 4 if x == "float32" else 2, processor.tables)


@dataclass(frozen=True)
class Reader(ABC):
    """Reads weights of one output, `taken` of its bytes at a time."""

    arithmetic: Arithmetic
    x: ClassVar[str] = "x"  # where it lies, by the name that a product is told
    lead: ClassVar[int] = 0  # numbers that lie before those of each group of x

    @property
    @abstractmethod
    def taken(self) -> int: ...

    @abstractmethod
    def bytes_of(self, code: Code, inputs: Value) -> Value:
        """What so many inputs take."""

    def row(self, code: Code, inputs: Value, groups: Value) -> Value:
        """Bytes of a row of x."""
        numbers = code.add(inputs, code.product(groups, self.lead))
        return code.product(numbers, self.arithmetic.size)

    def group(self, code: Code, number_: Value, size: Value) -> Value:
        """How many bytes of a row of x lie before the numbers of a group, which has `size`."""
        before = code.product(number_, code.add(size, number(self.lead)))
        return code.product(code.add(before, number(self.lead)), self.arithmetic.size)

    def x_at(self, code: Code, taken: Value, half: Value, run: int) -> Value:
        """How many bytes of a group of x lie before a run that belongs to weights at this byte.

        half: bytes of half a group of x.
        """
        return code.product(taken, self.arithmetic.size)

    @abstractmethod
    def prepared(self, code: Code, zero: Value | None) -> Any:
        """What is the same for a whole group, zero: int32 that is taken off its codes."""

    def begun(self, code: Code, x: Value, prepared: Any) -> Value:
        """Where a group's sums begin. x: where its numbers do."""
        return ir.Constant(vector(FLOAT, self.arithmetic.lanes), [0.0] * self.arithmetic.lanes)

    @abstractmethod
    def read(self, code: Code, address: Value, prepared: Any) -> Sequence[Value]:
        """`width` weights for each run of x that these bytes belong to, as its arithmetic's."""


@dataclass(frozen=True)
class Floats(Reader):
    """Of x's own type."""

    @property
    def taken(self) -> int:
        return self.arithmetic.width * self.arithmetic.size

    def bytes_of(self, code: Code, inputs: Value) -> Value:
        return code.product(inputs, self.arithmetic.size)

    def x_at(self, code: Code, taken: Value, half: Value, run: int) -> Value:
        return taken

    def prepared(self, code: Code, zero: Value | None) -> None:
        return None

    def read(self, code: Code, address: Value, prepared: None) -> Sequence[Value]:
        return [self.arithmetic.numbers(code, address)]


@dataclass(frozen=True)
class Bytes(Reader):
    """int8."""

    @property
    def taken(self) -> int:
        return self.arithmetic.width

    def bytes_of(self, code: Code, inputs: Value) -> Value:
        return inputs

    def prepared(self, code: Code, zero: Value | None) -> Value | None:
        return None if zero is None else code.filled(zero, self.arithmetic.width)

    def read(self, code: Code, address: Value, prepared: Value | None) -> Sequence[Value]:
        wide = vector(INT32, self.arithmetic.width)
        values = code.sext(code.read(address, vector(BYTE, self.arithmetic.width)), wide)
        if prepared is not None:
            values = code.sub(values, prepared)
        return [self.arithmetic.integers(code, values)]


@dataclass(frozen=True)
class Halves(Reader):
    """int4 + 8: a group's first half in the low bits of bytes, its second in the high ones.

    Looked up in tables; see nibbles.py for processors that have none.
    """

    short: bool  # a group is one step of x, and both halves one run

    @property
    def taken(self) -> int:
        return self.arithmetic.width // (1 + self.short)

    def bytes_of(self, code: Code, inputs: Value) -> Value:
        return code.ashr(inputs, number(1))

    def x_at(self, code: Code, taken: Value, half: Value, run: int) -> Value:
        return code.add(super().x_at(code, taken, half, run), half if run else number(0))

    def prepared(self, code: Code, zero: Value | None) -> Value:
        """The 16 numbers that codes stand for."""
        width = self.arithmetic.width
        wide = vector(INT32, width)
        values: Value = ir.Constant(wide, [n % 16 - 8 for n in range(width)])
        if zero is not None:
            values = code.sub(values, code.filled(zero, width))
        return self.arithmetic.integers(code, values)

    def read(self, code: Code, address: Value, prepared: Value) -> Sequence[Value]:
        both = code.read(address, vector(BYTE, self.taken))
        fill = lambda n: ir.Constant(both.type, [n] * self.taken)
        halves = [code.and_(both, fill(15)), code.lshr(both, fill(4))]
        if self.short:
            halves = [code.shuffled(halves[0], halves[1], range(2 * self.taken))]
        return [self.arithmetic.looked_up(code, prepared, half) for half in halves]


def multiplied(code: Code, sums: Value, a: Value, b: Value) -> Value:
    """sums + a * b, float32, rounded once."""
    return code.ask(f"llvm.fma.v{sums.type.count}f32", sums.type, a, b, sums)
