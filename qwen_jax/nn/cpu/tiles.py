"""Products of some rows with some outputs: y[r, o] = sum over i of x[r, i] * weight[o, i].

Sums lie in registers, `lanes` for each y, of every so many inputs. They are added up at the end.
The order is that of the inputs alone, so a row's bits do not depend on the rows beside it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
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
_GROUPS = 4  # tiles one below the other that share weights while those are in a near cache


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


@dataclass(frozen=True)
class Vectors:
    """A `products.Way`, in registers of some numbers. Rows are prepared where a reader asks."""

    kind: Kind
    processor: Processor

    outputs = OUTPUTS
    run = 128 * 1024  # they stay in its cache

    @property
    def reader(self) -> Reader:
        return reader_of(self.kind, self.processor)

    def an_output(self, code: Code, inputs: Value) -> Value:
        return self.reader.bytes_of(code, inputs)

    def beside(self, code: Code, rows: Value, inputs: Value, groups: Value) -> Value:
        if not isinstance(self.reader, Nibbles):
            return number(0)
        return code.product(rows, self.reader.row(code, inputs, groups))

    def preparations(self, code: Code, rows: Value) -> Value:
        return rows if isinstance(self.reader, Nibbles) else number(0)

    def prepare(self, module: ir.Module) -> ir.Function:
        """prepare(task, row)."""
        code, made = function(module, "prepare", [POINTER, INT64])
        if isinstance(reader := self.reader, Nibbles):
            task, row = made.args
            given = told(code, task)
            inputs, groups = given["inputs"], given["groups"]
            x = code.past(given["x"], code.product(row, inputs, reader.told))
            to = code.product(row, reader.row(code, inputs, groups))
            reader.put(code, x, code.past(given["beside"], to), inputs, groups)
        code.ret_void()
        return made

    def part(self, module: ir.Module) -> ir.Function:
        """part(task, first, last): every row with outputs from first to last."""
        most = _rows(self.kind, self.processor)
        tiles = [_tile(module, self.kind, self.processor, rows) for rows in range(1, most + 1)]
        code, made = function(module, "part", [POINTER, INT64, INT64])
        task, first, last = made.args
        rows = told(code, task)["rows"]
        block = _GROUPS * most
        whole = code.sub(rows, code.srem(rows, number(most)))
        rest = code.sub(rows, whole)
        with code.steps(rows, block) as (start, _):
            stop = code.add(start, number(block))
            ends = code.icmp_signed(">=", stop, rows)
            with code.steps(last, OUTPUTS, start=first) as (output, _):
                with code.steps(code.least(stop, whole), most, start=start) as (row, _):
                    code.call(tiles[-1], [task, row, output])
                for count, tile in enumerate(tiles[:-1], 1):
                    wanted = code.and_(ends, code.icmp_signed("==", rest, number(count)))
                    with code.if_then(wanted):
                        code.call(tile, [task, whole, output])
        code.ret_void()
        return made


def _rows(kind: Kind, processor: Processor) -> int:
    """Of a tile: as many as leave its sums in registers, of groups twice."""
    few, many = (2, 3) if kind.groups else (3, 6)
    return many if processor.registers >= 32 else few


def _tile(module: ir.Module, kind: Kind, processor: Processor, rows: int) -> ir.Function:
    """tile(task, row, output): `rows` rows with OUTPUTS outputs."""
    code, made = function(module, f"tile_{rows}", [POINTER, INT64, INT64])
    task, row, output = made.args
    tile = _Tile(code, kind, processor, rows, task, row, output)
    sums = tile.of_groups() if kind.groups else tile.of_outputs()
    for n in range(rows):
        y = code.product(code.add(row, number(n)), tile.told["out"])
        four = totals(code, sums[n * OUTPUTS : (n + 1) * OUTPUTS], tile.how.lanes)
        code.write(four, tile.told["y"], code.product(code.add(y, output), 4))
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

    def of_outputs(self) -> list[Value]:
        if not self.kind.integers:
            return self._over(number(0), self.told["inputs"], [None] * OUTPUTS)
        places = [self.code.add(self.output, number(n)) for n in range(OUTPUTS)]
        return self._scaled(places, number(0), self.told["inputs"], self.nothing)

    def of_groups(self) -> list[Value]:
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
        sums = self._over(group, size, [self.reader.prepared(code, zero) for zero in zeros])
        for n, place in enumerate(places):
            scale = code.fpext(code.read(given["scales"], HALF, code.product(place, 2)), FLOAT)
            scale = code.filled(scale, self.how.lanes)
            for at in range(n, len(sums), OUTPUTS):
                sums[at] = multiplied(code, totals[at], sums[at], scale)
        return sums

    def _over(self, group: Value, size: Value, prepared: Sequence[Any]) -> list[Value]:
        """Sums over a group of `size` inputs."""
        code, reader, bytes_of = self.code, self.reader, self.reader.bytes_of
        xs = [code.past(x, reader.group(code, group, size)) for x in self.xs]
        start = code.product(group, size)
        kernels = [code.past(kernel, bytes_of(code, start)) for kernel in self.kernels]
        ahead = code.product(bytes_of(code, self.told["inputs"]), OUTPUTS)
        half = code.product(code.ashr(size, number(1)), self.how.size)
        begun = [reader.begun(code, x, output) for x in xs for output in prepared]
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
