"""Attention over keys and values in pages as a job that threads share: see `nn.attention`.

A turn takes some queries of one key/value head and goes through the keys in blocks, with a softmax
that follows (arXiv 2112.05682). Blocks have the same size and order for every query, and what is
done for one does not depend on those beside it: so its bits depend on its own text alone. What was
left behind a text's end is never read.
"""

from dataclasses import dataclass

from llvmlite import ir

from qwen_jax.nn.cpu.code import (
    FLOAT,
    INT16,
    INT32,
    INT64,
    POINTER,
    Code,
    Value,
    function,
    number,
    vector,
)
from qwen_jax.nn.cpu.kinds import KEYS, Attention
from qwen_jax.nn.cpu.shared import Asked, Call
from qwen_jax.nn.cpu.softmax import MASKED, QUERIES, Block, Sums, bytes_of, nothing
from qwen_jax.nn.cpu.vectors import quantised, rounded
from qwen_jax.nn.cpu.weights import Processor, Singles

_KINDS = {4: INT32, 2: INT16}  # of numbers that are moved as they are, by their bytes
_STORED = ("keys", "values")
_SCALES = ("key_scales", "value_scales")
_NEW = ("new_keys", "new_values")
_ARRAYS = ("y", "x", *_NEW, *_STORED, *_SCALES, "table", "positions", "ends")
_COUNTS = ("length", "heads", "groups", "pages", "page", "blocks", "tiles")


@dataclass(frozen=True)
class Attending:
    """A `shared.Job`."""

    kind: Attention
    processor: Processor

    names = (*_ARRAYS, *_COUNTS)

    def asked(self, code: Code, call: Call) -> Asked:
        """What nn.cpu.attend gives, whose stores are also where they are to be."""
        stored = [name for pair in zip(_STORED, _SCALES, strict=True) for name in pair]
        given = ["x", *_NEW, *(stored if self.scaled else _STORED), "table", "positions", "ends"]
        buffers = {name: call.argument(n) for n, name in enumerate(given)} | {"y": call.result()}
        batch, length, heads, groups = (buffers["x"].dimension(axis) for axis in range(4))
        tiles = code.add(code.product(length, groups), number(QUERIES - 1))
        tiles = code.sdiv(tiles, number(QUERIES))
        counts = {
            "length": length,
            "heads": heads,
            "groups": groups,
            "pages": buffers["keys"].dimension(0),
            "page": buffers["keys"].dimension(2),
            "blocks": buffers["table"].dimension(1),
            "tiles": tiles,
        }
        told = {name: buffer.data() for name, buffer in buffers.items()} | counts
        return Asked(told, code.product(batch, heads, tiles), preparations=batch, beside=number(0))

    @property
    def scaled(self) -> bool:
        return self.kind.stored == "int8"

    def prepare(self, module: ir.Module) -> ir.Function:
        """prepare(task, row): store what is new of it."""
        code, made = function(module, "prepare", [POINTER, INT64])
        task, row = made.args
        given = _told(code, task)
        end = _end(code, given, row)
        with code.steps(given["length"], 1) as (n, _):
            token = code.add(code.product(row, given["length"]), n)
            position = _position(code, given, token)
            there = code.icmp_signed("<", position, end)
            heads = code.select(there, given["heads"], number(0))
            with code.steps(heads, 1) as (head, _):
                places = self._place(code, given, row, head, position)
                at = code.add(code.product(token, given["heads"]), head)
                for name, place, scale in zip(_NEW, places[:2], places[2:], strict=True):
                    x = code.past(given[name], code.product(at, self._bytes()))
                    self._store(code, x, place, scale)
        code.ret_void()
        return made

    def _store(self, code: Code, x: Value, place: Value, scale: Value) -> None:
        lanes, size, own = self.processor.lanes, self._size, self._singles
        steps = range(0, self.kind.size, lanes)
        if self.kind.x == self.kind.stored:
            for at in steps:
                code.write(code.read(x, vector(_KINDS[size], lanes), at * size), place, at * size)
            return
        parts = [own.numbers(code, code.past(x, at * size)) for at in steps]
        if self.scaled:
            parts, factor = quantised(code, parts)
            code.write(factor, scale)
        elif self.kind.stored == "bfloat16":
            parts = [rounded(code, part) for part in parts]
        for at, part in zip(steps, parts, strict=True):
            code.write(part, place, at * bytes_of(self.kind))

    def turn(self, module: ir.Module) -> ir.Function:
        most = 4 if self.processor.registers >= 32 else 2
        block = Block(self.kind, self.processor)
        blocks = [block.made(module, count) for count in range(1, most + 1)]
        code, made = function(module, "turn", [POINTER, INT64])
        task, turn = made.args
        given = _told(code, task)
        length, heads, groups = (given[name] for name in ("length", "heads", "groups"))
        rest, tile = _divided(code, turn, given["tiles"])
        row, head = _divided(code, rest, heads)
        first = code.product(tile, QUERIES)
        count = code.least(code.sub(code.product(length, groups), first), number(QUERIES))
        end = _end(code, given, row)

        def place(n: Value) -> tuple[Value, Value]:
            """Of a query: which token asks, and which head of [B T K G] it is."""
            token, group = _divided(code, code.add(first, n), groups)
            token = code.add(code.product(row, length), token)
            at = code.product(code.add(code.product(token, heads), head), groups)
            return token, code.add(at, group)

        sums = Sums(code, self.kind, code.room(Sums.size_of(self.kind) // 8))
        last = code.room(1)
        code.write(number(0), last)
        with code.steps(count, 1) as (n, _):
            token, at = place(n)
            seen = code.least(code.add(_position(code, given, token), number(1)), end)
            code.write(code.most(seen, code.read(last, INT64)), last)
            self._begin(code, sums, n, code.past(given["x"], code.product(at, self._bytes())), seen)
        stop = code.read(last, INT64)
        with code.steps(stop, KEYS) as (start, _):
            there = code.least(code.sub(stop, start), number(KEYS))
            places = self._place(code, given, row, head, start)
            sums.write_block(start, there)
            with code.steps(count, most) as (n, _):
                left = code.sub(count, n)
                for size, called in enumerate(blocks, 1):
                    fits = code.icmp_signed(">=" if size == most else "==", left, number(size))
                    with code.if_then(fits):
                        code.call(called, [sums.address, n, *places])
        with code.steps(count, 1) as (n, _):
            _, at = place(n)
            self._end(code, sums, n, code.past(given["y"], code.product(at, self._bytes())))
        code.ret_void()
        return made

    @property
    def _size(self) -> int:
        """Bytes of a number of a query."""
        return 4 if self.kind.x == "float32" else 2

    @property
    def _singles(self) -> Singles:
        """What widens a query's numbers."""
        return Singles(self.processor.lanes, self._size, self.processor.tables)

    def _bytes(self) -> int:
        """Of a query."""
        return self.kind.size * self._size

    def _place(
        self, code: Code, given: dict[str, Value], row: Value, head: Value, start: Value
    ) -> list[Value]:
        """Where keys, values and their scales from `start` on lie, of a head of a row's text."""
        block, offset = _divided(code, start, given["page"])
        at = code.product(code.add(code.product(row, given["blocks"]), block), 4)
        page = code.sext(code.read(given["table"], INT32, at), INT64)
        page = code.most(code.least(page, code.sub(given["pages"], number(1))), number(0))
        key = code.product(code.add(code.product(page, given["heads"]), head), given["page"])
        key = code.add(key, offset)
        data = code.product(key, self.kind.size, bytes_of(self.kind))
        scale = code.product(key, 4)
        stored = [code.past(given[name], data) for name in _STORED]
        if not self.scaled:
            return [*stored, *stored]  # there are none
        return [*stored, *(code.past(given[name], scale) for name in _SCALES)]

    def _begin(self, code: Code, sums: Sums, n: Value, x: Value, seen: Value) -> None:
        lanes, own = self.processor.lanes, self._singles
        for at in range(0, self.kind.size, lanes):
            if self.kind.inner == self.kind.x:
                part = code.read(x, vector(_KINDS[own.size], lanes), at * own.size)
            else:
                part = own.numbers(code, code.past(x, at * own.size))
            code.write(part, sums.query(n), at * sums.inner)
            code.write(nothing(lanes), sums.y(n), at * 4)
        code.write(seen, sums.seen(n))
        code.write(ir.Constant(FLOAT, MASKED), sums.highest(n))
        code.write(ir.Constant(FLOAT, 0.0), sums.total(n))

    def _end(self, code: Code, sums: Sums, n: Value, y: Value) -> None:
        """A row without a single key has nothing to give."""
        lanes = self.processor.lanes
        total = code.read(sums.total(n), FLOAT)
        none = code.fcmp_ordered("==", total, ir.Constant(FLOAT, 0.0))
        total = code.filled(code.select(none, ir.Constant(FLOAT, 1.0), total), lanes)
        for at in range(0, self.kind.size, lanes):
            part = code.fdiv(code.read(sums.y(n), vector(FLOAT, lanes), at * 4), total)
            if self.kind.x == "bfloat16":
                code.write(rounded(code, part), y, at * 2)
            else:
                code.write(part, y, at * 4)


def _told(code: Code, task: Value) -> dict[str, Value]:
    return {
        name: code.read(task, POINTER if name in _ARRAYS else INT64, 8 * n)
        for n, name in enumerate(Attending.names)
    }


def _end(code: Code, given: dict[str, Value], row: Value) -> Value:
    """How many tokens a row's text has, of those that its pages have room for."""
    end = code.sext(code.read(given["ends"], INT32, code.product(row, 4)), INT64)
    return code.least(end, code.product(given["blocks"], given["page"]))


def _position(code: Code, given: dict[str, Value], token: Value) -> Value:
    position = code.read(given["positions"], INT32, code.product(token, 4))
    return code.sext(position, INT64)


def _divided(code: Code, value: Value, by: Value) -> tuple[Value, Value]:
    return code.sdiv(value, by), code.srem(value, by)
