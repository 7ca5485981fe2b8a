"""Products of bf16 by AMX, whose registers are whole tiles of 16 lines of 64 bytes.

One holds weights as they lie: 16 outputs, 32 inputs of each. Another holds x turned: a line is two
inputs of 16 rows, and the next line the next two. Their product is added to a third: 16 outputs of
16 rows, in float32. What is left over at the edges has smaller tiles, with the same sums. So a
row's bits depend on its own numbers alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from qwen_jax.nn.cpu.code import (
    BYTE,
    FLOAT,
    INT16,
    INT32,
    INT64,
    POINTER,
    VOID,
    Code,
    Value,
    function,
    number,
    vector,
)
from qwen_jax.nn.cpu.kinds import Kind
from qwen_jax.nn.cpu.tiles import told

SIDE = 16  # lines of a tile, and numbers of 32 bits in a line
_LINE = 4 * SIDE  # bytes
_PAIR = 2 * SIDE  # outputs, or rows, whose tiles are multiplied together
_STRIP = 128  # outputs whose sums are put into y together
_AHEAD = 4 * _LINE  # bytes of an output that are fetched before they are wanted


def suits(kind: Kind) -> bool:
    return kind.x == kind.weights == "bfloat16"


class Amx:
    """A `products.Way`. Rows of x are turned first, 16 at a time."""

    outputs = _PAIR

    def an_output(self, code: Code, inputs: Value) -> Value:
        return code.product(inputs, 2)

    def run(self, code: Code, rows: Value) -> Value:
        return number(256 * 1024)  # twice as much gains 3 % of one row, and leaves less to share

    def beside(self, code: Code, rows: Value, inputs: Value, groups: Value) -> Value:
        """x turned, and what is written past it."""
        return code.add(code.product(rows, inputs, 2), number(_LINE))

    def preparations(self, code: Code, rows: Value) -> Value:
        return code.sdiv(code.add(rows, number(SIDE - 1)), number(SIDE))

    def prepare(self, module: ir.Module) -> ir.Function:
        """prepare(task, turn): x' of 16 rows, [inputs/2 rows] of two inputs each."""
        code, made = function(module, "prepare", [POINTER, INT64])
        task, turn = made.args
        given = told(code, task)
        a_row = code.product(given["inputs"], 2)
        row = code.product(turn, SIDE)
        count = _left(code, given["rows"], row)
        x, to = (code.past(given[name], code.product(row, a_row)) for name in ("x", "beside"))
        last = code.sub(count, number(1))  # stands in for those that there are not
        rows = [code.past(x, code.product(code.least(number(n), last), a_row)) for n in range(SIDE)]
        with code.steps(a_row, _LINE) as (at, _):
            numbers = [code.read(row, vector(INT16, 2 * SIDE), at) for row in rows]
            pairs = [code.bitcast(part, vector(INT32, SIDE)) for part in numbers]
            place = code.past(to, code.product(at, count))
            for n, line in enumerate(_turned(code, pairs)):
                code.write(line, place, code.product(count, 4 * n))  # the next is over its end
        code.ret_void()
        return made

    def part(self, module: ir.Module) -> ir.Function:
        multiply, put = _multiply(module), _put(module)
        code, made = function(module, "part", [POINTER, INT64, INT64])
        task, first, last = made.args
        rows = told(code, task)["rows"]
        sums = code.room(_PAIR * _STRIP // 2)
        with code.steps(last, _STRIP, start=first) as (start, _):
            stop = code.least(code.add(start, number(_STRIP)), last)
            with code.steps(rows, _PAIR) as (row, _):
                for step in (multiply, put):
                    code.call(step, [task, row, start, stop, sums])
        code.ask("llvm.x86.tilerelease", VOID)
        code.ret_void()
        return made


# What follows works at a strip: sums of two tiles of rows with up to _STRIP outputs, which lie as
# float32 [2 _STRIP SIDE], of each tile of rows all outputs.
_ROWS_OF_STRIP = _STRIP * _LINE  # bytes
_STEP = [POINTER, INT64, INT64, INT64, POINTER]


def _multiply(module: ir.Module) -> ir.Function:
    """multiply(task, row, first, last, sums): rows from this one on, outputs from first to last."""
    sizes = [(across, down) for across in (1, 2) for down in (1, 2)]
    blocks = [_block(module, across, down) for across, down in sizes]
    code, made = function(module, "multiply", _STEP)
    task, row, first, last, sums = made.args
    more_rows = code.icmp_signed(">", code.sub(told(code, task)["rows"], row), number(SIDE))
    with code.steps(last, _PAIR, start=first) as (output, _):
        more_outputs = code.icmp_signed(">", code.sub(last, output), number(SIDE))
        place = code.past(sums, code.product(code.sub(output, first), _LINE))
        for (across, down), block in zip(sizes, blocks, strict=True):
            fits = (
                more if size == 2 else code.not_(more)
                for size, more in ((across, more_outputs), (down, more_rows))
            )
            with code.if_then(code.and_(*fits)):
                code.call(block, [task, row, output, place])
    code.ret_void()
    return made


@dataclass(frozen=True)
class _Tile:
    """A register of the processor's eight, and which part of it is in use."""

    place: int
    lines: Value
    width: Value  # bytes of a line

    def ask(self, code: Code, name: str, *more: Value) -> None:
        code.ask(f"llvm.x86.{name}", VOID, ir.Constant(BYTE, self.place), *more)


def _block(module: ir.Module, across: int, down: int) -> ir.Function:
    """block(task, row, output, sums): so many tiles of outputs with so many of rows."""
    code, made = function(module, f"block_{across}_{down}", [POINTER, INT64, INT64, POINTER])
    task, row, output, sums = made.args
    given = told(code, task)
    an_output = a_row = code.product(given["inputs"], 2)
    outputs = [code.add(output, number(SIDE * n)) for n in range(across)]
    rows = [code.add(row, number(SIDE * n)) for n in range(down)]
    kernels = [code.past(given["weights"], code.product(output, an_output)) for output in outputs]
    xs = [code.past(given["beside"], code.product(row, a_row)) for row in rows]
    highs = [_left(code, given["out"], output) for output in outputs]
    counts = [_left(code, given["rows"], row) for row in rows]
    widths = [code.product(count, 4) for count in counts]

    weights = [_Tile(n, high, number(_LINE)) for n, high in enumerate(highs)]
    turned = [_Tile(2 + n, number(SIDE), width) for n, width in enumerate(widths)]
    totals = [
        [_Tile(4 + 2 * n + m, high, width) for m, width in enumerate(widths)]
        for n, high in enumerate(highs)
    ]
    _shape(code, [*weights, *turned, *(tile for line in totals for tile in line)])
    for line in totals:
        for total in line:
            total.ask(code, "tilezero")
    with code.steps(an_output, _LINE) as (at, _):
        _fetch(code, kernels[0], at, an_output, SIDE * across)
        for tile, kernel in zip(weights, kernels, strict=True):
            tile.ask(code, "tileloadd64", code.past(kernel, at), an_output)
        for tile, x, count in zip(turned, xs, counts, strict=True):
            tile.ask(code, "tileloadd64", code.past(x, code.product(at, count)), tile.width)
        for a, line in zip(weights, totals, strict=True):
            for b, total in zip(turned, line, strict=True):
                places = [ir.Constant(BYTE, tile.place) for tile in (a, b)]
                total.ask(code, "tdpbf16ps", *places)
    for n, line in enumerate(totals):
        for m, total in enumerate(line):
            place = code.past(sums, m * _ROWS_OF_STRIP + n * SIDE * _LINE)
            total.ask(code, "tilestored64", place, number(_LINE))
    code.ret_void()
    return made


def _fetch(code: Code, kernel: Value, at: Value, an_output: Value, outputs: int) -> None:
    """Have come what a later step takes of these outputs, or near their ends, of the next ones."""
    then = code.add(at, number(_AHEAD))
    ends = code.icmp_signed(">=", then, an_output)
    then = code.add(then, code.select(ends, code.product(an_output, outputs - 1), number(0)))
    place = code.past(kernel, then)
    for _ in range(outputs):
        code.fetch(place, 1)
        place = code.past(place, an_output)


def _shape(code: Code, tiles: Sequence[_Tile]) -> None:
    """Tell the processor what of its tiles is in use: the sixty-four bytes of LDTILECFG."""
    shape = code.room(8)
    code.write(ir.Constant(vector(INT64, 8), [1, *[0] * 7]), shape)
    for tile in tiles:
        code.write(code.trunc(tile.width, INT16), shape, 16 + 2 * tile.place)
        code.write(code.trunc(tile.lines, BYTE), shape, 48 + tile.place)
    code.ask("llvm.x86.ldtilecfg", VOID, shape)


def _put(module: ir.Module) -> ir.Function:
    """put(task, row, first, last, sums): into y."""
    code, made = function(module, "put", _STEP)
    task, row, first, last, sums = made.args
    given = told(code, task)
    out, a_line = given["out"], vector(FLOAT, SIDE)
    places = ir.Constant(vector(INT32, SIDE), [*range(SIDE)])
    stop = code.least(code.add(row, number(_PAIR)), given["rows"])
    tiles = code.steps(stop, SIDE, start=row), code.steps(last, SIDE, start=first)
    with tiles[0] as (start, _), tiles[1] as (output, _):
        tile = code.past(sums, code.product(code.sub(start, row), _ROWS_OF_STRIP // SIDE))
        tile = code.past(tile, code.product(code.sub(output, first), _LINE))
        lines = [code.read(tile, a_line, _LINE * n) for n in range(SIDE)]
        for n, line in enumerate(_turned(code, lines)):
            code.write(line, tile, _LINE * n)
        y = code.past(given["y"], code.product(code.add(code.product(start, out), output), 4))
        left = code.filled(code.trunc(_left(code, last, output), INT32), SIDE)
        there = code.icmp_signed("<", places, left)
        with code.steps(_left(code, given["rows"], start), 1) as (n, _):
            line = code.read(tile, a_line, code.product(n, _LINE))
            to = code.past(y, code.product(n, out, 4))
            code.ask("llvm.masked.store.v16f32.p0", VOID, line, to, ir.Constant(INT32, 4), there)
    code.ret_void()
    return made


def _left(code: Code, count: Value, before: Value) -> Value:
    """How many of a tile's 16 there are."""
    return code.least(code.sub(count, before), number(SIDE))


def _turned(code: Code, lines: Sequence[Value]) -> list[Value]:
    """16 lines of 16 -> its columns: in turn, bits of a number's line and place change places."""
    lines = list(lines)
    for bit in (1, 2, 4, 8):
        kept = [n if not n & bit else SIDE + n - bit for n in range(SIDE)]
        moved = [n + bit if not n & bit else SIDE + n for n in range(SIDE)]
        for n in range(SIDE):
            if not n & bit:
                a, b = lines[n], lines[n + bit]
                lines[n], lines[n + bit] = code.shuffled(a, b, kept), code.shuffled(a, b, moved)
    return lines
