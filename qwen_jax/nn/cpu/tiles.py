"""Products of some rows with some outputs: y[r, o] = sum over i of x[r, i] * weight[o, i].

Sums lie in registers, `lanes` for each y, of every so many inputs. They are added up at the end.
The order is that of the inputs alone, so a row's bits do not depend on the rows beside it.
"""

import functools
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from qwen_jax.nn.cpu import nibbles
from qwen_jax.nn.cpu.code import (
    BYTE,
    FLOAT,
    HALF,
    INT32,
    INT64,
    POINTER,
    Code,
    Value,
    function,
    number,
    vector,
)
from qwen_jax.nn.cpu.kinds import OUTPUTS, Kind
from qwen_jax.nn.cpu.nibbles import Nibbles
from qwen_jax.nn.cpu.weights import (
    Bytes,
    Floats,
    Halves,
    Processor,
    Reader,
    Singles,
    arithmetic,
    multiplied,
)

# What a product is told, as pointers and counts one behind the other, eight bytes each.
_ARRAYS = ("y", "x", "weights", "scales", "zeros", "beside")
TOLD = (*_ARRAYS, "rows", "out", "inputs", "groups", "run")


def told(code: Code, task: Value) -> dict[str, Value]:
    """A task's, by name."""
    return {
        name: code.read(task, POINTER if name in _ARRAYS else INT64, 8 * n)
        for n, name in enumerate(TOLD)
    }


def reader_of(kind: Kind, processor: Processor) -> Reader:
    how = arithmetic(kind.x, processor)
    if kind.weights == "int4" and not processor.tables:
        return Nibbles(Singles(processor.lanes, 4, tables=False), kind.short, how.size)
    if kind.weights == "int4":
        return Halves(how, kind.short)
    return Bytes(how) if kind.weights == "int8" else Floats(how)


def short(x: str, size: int, processor: Processor) -> bool | None:
    """Whether groups of so many inputs in int4 are a `Kind`'s short ones; None: none takes them."""
    width = arithmetic(x, processor).width
    step = 2 * width if processor.tables else nibbles.step(processor.lanes)
    if size % step == 0:
        return False
    fits = size == width if processor.tables else size % (step // 2) == 0
    return True if fits else None


def most_rows(kind: Kind, processor: Processor) -> int:
    """Of a tile: as many as leave its sums in registers, of groups twice."""
    few, many = (2, 3) if kind.groups else (3, 6)
    return many if processor.registers >= 32 else few


def tile(module: ir.Module, kind: Kind, processor: Processor, rows: int) -> ir.Function:
    """tile(task, row, output, begin, end, sums): `rows` rows with OUTPUTS outputs, of some inputs.

    Where those are not the last, sums wait for the next ones; floats alone are read in parts.
    """
    code, made = function(module, f"tile_{rows}", [POINTER, *[INT64] * 4, POINTER])
    task, row, output, begin, end, place = made.args
    body = _Tile(code, kind, processor, rows, task, row, output)

    def put(sums: Sequence[Value]) -> None:
        for n in range(rows):
            y = code.product(code.add(row, number(n)), body.told["out"])
            four = totals(code, sums[n * OUTPUTS : (n + 1) * OUTPUTS], body.how.lanes)
            code.write(four, body.told["y"], code.product(code.add(y, output), 4))

    if kind.integers:
        put(body.of_groups() if kind.groups else body.of_outputs())
    else:
        sums = body.of_inputs(begin, end, place)
        with code.if_else(code.icmp_signed("==", end, body.told["inputs"])) as (last, more):
            with last:
                put(sums)
            with more:
                for n, value in enumerate(sums):
                    code.write(value, place, body.how.lanes * 4 * n)
    code.ret_void()
    return made


class _Tile:
    """A tile's sums in the making: of each row OUTPUTS, behind each other."""

    def __init__(
        self,
        code: Code,
        kind: Kind,
        processor: Processor,
        rows: int,
        task: Value,
        row: Value,
        output: Value,
    ):
        self.code, self.kind, self.output = code, kind, output
        self.reader = reader_of(kind, processor)
        self.how, self.registers = self.reader.arithmetic, processor.registers
        self.told = told(code, task)
        inputs = self.told["inputs"]
        a_row = self.reader.row(code, inputs, self.told["groups"])
        self.xs = self._each(rows, self.told[self.reader.x], row, a_row)
        an_output = self.reader.bytes_of(code, inputs)
        self.kernels = self._each(OUTPUTS, self.told["weights"], output, an_output)
        nothing = ir.Constant(vector(FLOAT, self.how.lanes), [0.0] * self.how.lanes)
        self.nothing = [nothing] * (rows * OUTPUTS)

    def _each(self, count: int, address: Value, first: Value, size: Value) -> list[Value]:
        code = self.code
        return [
            code.past(address, code.product(code.add(first, number(n)), size)) for n in range(count)
        ]

    def of_inputs(self, begin: Value, end: Value, place: Value) -> list[Value]:
        """Sums over these of all inputs, of floats, on top of those that wait at a place."""
        code, kind = self.code, vector(FLOAT, self.how.lanes)
        waiting = lambda: [
            code.read(place, kind, 4 * kind.count * n) for n in range(len(self.nothing))
        ]
        first = code.icmp_signed("==", begin, number(0))
        begun = code.either(first, lambda: self.nothing, waiting)
        x = code.product(begin, self.how.size)
        return self._over(x, begin, code.sub(end, begin), [None] * OUTPUTS, begun)

    def of_outputs(self) -> list[Value]:
        """Sums over all inputs, of integers with one scale."""
        places = [self.code.add(self.output, number(n)) for n in range(OUTPUTS)]
        return self._scaled(places, number(0), self.told["inputs"], self.nothing)

    def of_groups(self) -> list[Value]:
        """Sums over all inputs, of integers with a scale for each group."""
        code, groups = self.code, self.told["groups"]
        size = code.sdiv(self.told["inputs"], groups)
        with code.steps(groups, 1, *self.nothing) as (group, totals):
            outputs = [code.add(self.output, number(n)) for n in range(OUTPUTS)]
            places = [code.add(code.product(output, groups), group) for output in outputs]
            totals[:] = self._scaled(places, group, size, totals)
        return totals

    def _scaled(
        self, places: Sequence[Value], group: Value, size: Value, totals: Sequence[Value]
    ) -> list[Value]:
        """Codes are multiplied as they are, and the sums by the scales at these places."""
        code, given = self.code, self.told
        zeros: list[Value | None] = [None] * OUTPUTS
        if self.kind.zeros:
            signed = lambda place: code.sext(code.read(given["zeros"], BYTE, place), INT32)
            zeros = [signed(place) for place in places]
        prepared = [self.reader.prepared(code, zero) for zero in zeros]
        x = self.reader.group(code, group, size)
        begun = [
            self.reader.begun(code, code.past(row, x), output)
            for row in self.xs
            for output in prepared
        ]
        sums = self._over(x, code.product(group, size), size, prepared, begun)
        for n, place in enumerate(places):
            scale = code.fpext(code.read(given["scales"], HALF, code.product(place, 2)), FLOAT)
            scale = code.filled(scale, self.how.lanes)
            for at in range(n, len(sums), OUTPUTS):
                sums[at] = multiplied(code, totals[at], sums[at], scale)
        return sums

    def _over(
        self,
        x: Value,
        start: Value,
        size: Value,
        prepared: Sequence[Any],
        begun: Sequence[Value],
    ) -> list[Value]:
        """Sums over `size` inputs from `start` on. x: bytes of a row before them."""
        code, reader, bytes_of = self.code, self.reader, self.reader.bytes_of
        xs = [code.past(row, x) for row in self.xs]
        kernels = [code.past(kernel, bytes_of(code, start)) for kernel in self.kernels]
        ahead = code.product(bytes_of(code, self.told["inputs"]), OUTPUTS)
        half = code.product(code.ashr(size, number(1)), self.how.size)
        with code.steps(bytes_of(code, size), reader.taken, *begun) as (at, sums):

            @functools.cache
            def weights(output: int) -> Sequence[Value]:
                return reader.read(code, code.past(kernels[output], at), prepared[output])

            @functools.cache
            def numbers(row: int, run: int) -> Value:
                place = code.past(xs[row], reader.x_at(code, at, half, run))
                return self.how.numbers(code, place)

            rows, runs = range(len(xs)), range(len(weights(0)))
            order = [
                (row, run, output) for row in rows for run in runs for output in range(OUTPUTS)
            ]
            if self.registers < 32 and 1 < len(xs) < OUTPUTS:  # they hold what there are fewer of
                order.sort(key=lambda place: (place[2], place[1]))
            for row, run, output in order:
                n = row * OUTPUTS + output
                sums[n] = self.how.added(code, sums[n], weights(output)[run], numbers(row, run))
            for kernel in kernels:  # while this tile is computed, the next one's come from memory
                code.fetch(code.past(kernel, at, ahead), 2)
        return sums


def totals(code: Code, sums: Sequence[Value], lanes: int) -> Value:
    """Four registers of sums -> the four totals."""
    pick = lambda *order: [place + lane for lane in range(0, lanes, 4) for place in order]

    def joined(a: Value, b: Value, low: Sequence[int], high: Sequence[int]) -> Value:
        return code.fadd(code.shuffled(a, b, low), code.shuffled(a, b, high))

    # the second register begins at `lanes`
    pairs = pick(0, lanes, 1, lanes + 1), pick(2, lanes + 2, 3, lanes + 3)
    ab, cd = joined(sums[0], sums[1], *pairs), joined(sums[2], sums[3], *pairs)
    total = joined(ab, cd, pick(0, 1, lanes, lanes + 1), pick(2, 3, lanes + 2, lanes + 3))
    while (size := total.type.count) > 4:
        half = size // 2
        total = joined(total, total, range(half), range(half, size))
    return total
