"""LLVM's instructions, as far as products need them, on top of llvmlite's builder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from llvmlite import ir

BYTE, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()
POINTER, VOID = ir.PointerType(), ir.VoidType()
Value: TypeAlias = Any  # ir.Value; llvmlite has no types


class _BFloat(ir.Type):  # type: ignore[misc]
    """bf16, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


BFLOAT = _BFloat()
_BYTES = {BYTE: 1, INT16: 2, HALF: 2, BFLOAT: 2, INT32: 4, FLOAT: 4, INT64: 8}


def vector(kind: ir.Type, size: int) -> ir.VectorType:
    return ir.VectorType(kind, size)


def number(value: int) -> ir.Constant:
    return ir.Constant(INT64, value)


def function(
    module: ir.Module, name: str, arguments: Sequence[ir.Type], result: ir.Type = VOID
) -> tuple["Code", Any]:
    """A function of the module, and its body to be written."""
    made = ir.Function(module, ir.FunctionType(result, arguments), name)
    return Code(made.append_basic_block()), made


class Code(ir.IRBuilder):  # type: ignore[misc]
    """A function's body in the making. Addresses are in bytes, counts are INT64."""

    def past(self, address: Value, *offsets: Value | int) -> Value:
        for offset in offsets:
            places = [number(offset) if isinstance(offset, int) else offset]
            address = self.gep(address, places, source_etype=BYTE)
            address.type = POINTER  # an alloca's has another, of which there are none any more
        return address

    def room(self, count: int) -> Value:
        """So many times eight bytes, until the function returns."""
        return self.past(self.alloca(INT64, size=count), 0)

    def read(self, address: Value, kind: ir.Type, offset: Value | int = 0) -> Value:
        return self.load(self.past(address, offset), typ=kind, align=_aligned(kind))

    def write(self, value: Value, address: Value, offset: Value | int = 0) -> None:
        self.store(value, self.past(address, offset), align=_aligned(value.type))

    def read_where(self, there: Value, address: Value, offset: int) -> Value:
        """float32 numbers where `there` says so, a vector of bits; 0 elsewhere, nothing is read."""
        kind = vector(FLOAT, there.type.count)
        rest = ir.Constant(kind, [0.0] * kind.count)
        place, aligned = self.past(address, offset), ir.Constant(INT32, 4)
        name = f"llvm.masked.load.v{kind.count}f32.p0"
        return self.ask(name, kind, place, aligned, there, rest)

    def fetch(self, address: Value, cache: int) -> None:
        """Have what lies there come into the first or second cache, if anything does."""
        flags = (ir.Constant(INT32, n) for n in (0, 4 - cache, 1))  # to be read, how near, data
        self.ask("llvm.prefetch.p0", VOID, address, *flags)

    def product(self, *factors: Value | int) -> Value:
        first, *rest = (number(n) if isinstance(n, int) else n for n in factors)
        for factor in rest:
            first = self.mul(first, factor)
        return first

    def least(self, a: Value, b: Value) -> Value:
        return self.select(self.icmp_signed("<", a, b), a, b)

    def most(self, a: Value, b: Value) -> Value:
        return self.select(self.icmp_signed(">", a, b), a, b)

    def filled(self, value: Value, size: int) -> Value:
        """A vector of `size` times the same."""
        empty = ir.Constant(vector(value.type, size), ir.Undefined)
        one = self.insert_element(empty, value, ir.Constant(INT32, 0))
        return self.shuffled(one, one, [0] * size)

    def shuffled(self, a: Value, b: Value, order: Sequence[int]) -> Value:
        """The numbers at these places of a and b, one behind the other."""
        return self.shuffle_vector(a, b, ir.Constant(vector(INT32, len(order)), [*order]))

    def ask(self, name: str, result: ir.Type, *arguments: Value) -> Value:
        """Call a function of LLVM's or of the C library."""
        known = self.module.globals.get(name)
        kinds = [argument.type for argument in arguments]
        found = known or ir.Function(self.module, ir.FunctionType(result, kinds), name)
        return self.call(found, arguments)

    def either(
        self,
        condition: Value,
        then: Callable[[], Sequence[Value]],
        otherwise: Callable[[], Sequence[Value]],
    ) -> list[Value]:
        """What one of two ways gives."""
        with self.if_else(condition) as (yes, no):
            with yes:
                first, first_at = then(), self.block
            with no:
                second, second_at = otherwise(), self.block
        found = [self.phi(value.type) for value in first]
        for phi, a, b in zip(found, first, second, strict=True):
            phi.add_incoming(a, first_at)
            phi.add_incoming(b, second_at)
        return found

    @contextmanager
    def steps(
        self, stop: Value, step: Value | int, *carried: Value, start: Value | int = 0
    ) -> Iterator[tuple[Value, list[Value]]]:
        """A loop over start, start + step, ... below stop.

        The list holds what is carried: on entry from the step before, on leaving what the next
        one is to have. Behind the loop it holds the last.
        """
        before = self.block
        head, body, end = (self.append_basic_block(name) for name in ("head", "body", "end"))
        self.branch(head)
        self.position_at_end(head)
        at = self.phi(INT64)
        at.add_incoming(number(start) if isinstance(start, int) else start, before)
        kept = [self.phi(value.type) for value in carried]
        for phi, value in zip(kept, carried, strict=True):
            phi.add_incoming(value, before)
        self.cbranch(self.icmp_signed("<", at, stop), body, end)
        self.position_at_end(body)
        held = list(kept)
        yield at, held
        at.add_incoming(self.add(at, number(step) if isinstance(step, int) else step), self.block)
        for phi, value in zip(kept, held, strict=True):
            phi.add_incoming(value, self.block)
        self.branch(head)
        self.position_at_end(end)
        held[:] = kept


def _aligned(kind: ir.Type) -> int:
    """No array is aligned further than its numbers are."""
    if isinstance(kind, ir.PointerType):
        return 8
    return _BYTES[kind.element if isinstance(kind, ir.VectorType) else kind]
