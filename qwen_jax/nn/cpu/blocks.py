"""Which tiles of a product follow each other: blocks that stay in a processor's nearest cache."""

from dataclasses import dataclass

from llvmlite import ir

from qwen_jax.nn.cpu.code import INT64, POINTER, Code, Value, function, number
from qwen_jax.nn.cpu.kinds import OUTPUTS, Kind
from qwen_jax.nn.cpu.nibbles import Nibbles
from qwen_jax.nn.cpu.tiles import most_rows, reader_of, tile, told
from qwen_jax.nn.cpu.weights import Processor, Reader

# Some rows, and a run of their inputs, lie in the nearest cache while a turn's outputs meet them.
# Integers, which are made floats for each tile, gain nothing by it.
_HEIGHT = 12  # rows; twice as many where there are no more
_LENGTH = 2048  # bytes of a row
_TURN = 128 * 1024  # bytes of weights; twice as many where rows are more


@dataclass(frozen=True)
class Vectors:
    """A `products.Way`, in registers of some numbers. Rows are prepared where a reader asks."""

    kind: Kind
    processor: Processor

    outputs = OUTPUTS

    @property
    def reader(self) -> Reader:
        return reader_of(self.kind, self.processor)

    def run(self, code: Code, rows: Value) -> Value:
        more = 1 if self.kind.integers else 2
        return code.select(_many(code, rows), number(more * _TURN), number(_TURN))

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
        most = most_rows(self.kind, self.processor)
        tiles = [tile(module, self.kind, self.processor, rows) for rows in range(1, most + 1)]
        code, made = function(module, "part", [POINTER, INT64, INT64])
        task, first, last = made.args
        given = told(code, task)
        rows, inputs = given["rows"], given["inputs"]
        whole = code.sub(rows, code.srem(rows, number(most)))
        rest = code.sub(rows, whole)
        height, length = number(2 * _HEIGHT), inputs
        if not self.kind.integers:  # whose sums are scaled, by groups: all inputs at once
            height = code.select(_many(code, rows), number(_HEIGHT), height)
            run = number(_LENGTH // self.reader.arithmetic.size)
            several = code.icmp_signed(">", rows, number(most))  # for one, weights come as they lie
            length = code.select(several, run, inputs)
        # sums that wait for more inputs: of a block's rows with a turn's outputs, which are half as
        # many where rows are twice as many; without a run of inputs there are none
        size = 4 * self.reader.arithmetic.lanes  # bytes of one
        sums = code.room(2 * _HEIGHT * (_TURN // _LENGTH + OUTPUTS) * size // 8)
        with code.steps(rows, height) as (start, _), code.steps(inputs, length) as (begin, _):
            stop = code.add(start, height)
            end = code.least(code.add(begin, length), inputs)
            with code.steps(last, OUTPUTS, start=first) as (output, _):
                waiting = code.past(sums, code.product(code.sub(output, first), height, size))

                def call(one: ir.Function, row: Value) -> None:
                    own = code.product(code.sub(row, start), OUTPUTS * size)
                    code.call(one, [task, row, output, begin, end, code.past(waiting, own)])

                with code.steps(code.least(stop, whole), most, start=start) as (row, _):
                    call(tiles[-1], row)
                with code.if_then(code.icmp_signed(">=", stop, rows)):
                    for count, one in enumerate(tiles[:-1], 1):
                        with code.if_then(code.icmp_signed("==", rest, number(count))):
                            call(one, whole)
        code.ret_void()
        return made


def _many(code: Code, rows: Value) -> Value:
    """Whether they are more than one block of few."""
    return code.icmp_signed(">", rows, number(2 * _HEIGHT))
