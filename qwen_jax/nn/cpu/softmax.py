"""A block of keys and values in an attention that goes from one to the next: see `attention`."""

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from qwen_jax.nn.cpu.code import (
    BYTE,
    FLOAT,
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
from qwen_jax.nn.cpu.tiles import totals
from qwen_jax.nn.cpu.vectors import exp, largest, total
from qwen_jax.nn.cpu.weights import Arithmetic, Processor, Singles, arithmetic, multiplied

QUERIES = 16  # of a turn
MASKED = -1e30
_TOGETHER = 4  # keys, and registers of values, that are worked at together


@dataclass(frozen=True)
class Sums:
    """What a turn has of its queries in memory: of each kind all, one behind the other."""

    code: Code
    kind: Attention
    address: Value

    @staticmethod
    def size_of(kind: Attention) -> int:
        return QUERIES * (kind.size * 8 + KEYS * 4 + 16) + 16

    @property
    def inner(self) -> int:
        """Bytes of a number of a query."""
        return 4 if self.kind.inner == "float32" else 2

    def query(self, n: Value) -> Value:
        return self._part(n, 0, self.kind.size * 4)

    def y(self, n: Value) -> Value:
        return self._part(n, self.kind.size * 4, self.kind.size * 4)

    def scores(self, n: Value) -> Value:
        return self._part(n, self.kind.size * 8, KEYS * 4)

    def seen(self, n: Value) -> Value:
        """How many keys a query sees."""
        return self._part(n, self.kind.size * 8 + KEYS * 4, 8)

    def highest(self, n: Value) -> Value:
        return self._part(n, self.kind.size * 8 + KEYS * 4 + 8, 4)

    def total(self, n: Value) -> Value:
        return self._part(n, self.kind.size * 8 + KEYS * 4 + 12, 4)

    def _part(self, n: Value, before: int, size: int) -> Value:
        return self.code.past(self.address, QUERIES * before, self.code.product(n, size))

    def write_block(self, start: Value, there: Value) -> None:
        """A block begins at this key, and so many of it are there."""
        self.code.write(start, self.address, self.size_of(self.kind) - 16)
        self.code.write(there, self.address, self.size_of(self.kind) - 8)

    def start(self) -> Value:
        return self.code.read(self.address, INT64, self.size_of(self.kind) - 16)

    def there(self) -> Value:
        return self.code.read(self.address, INT64, self.size_of(self.kind) - 8)


@dataclass(frozen=True)
class Block:
    """What is done at a block, for some queries together."""

    kind: Attention
    processor: Processor

    def made(self, module: ir.Module, count: int) -> ir.Function:
        """block(sums, n, keys, values, key scales, value scales): `count` queries from n on."""
        name = f"block_{count}"
        code, made = function(module, name, [POINTER, INT64, *[POINTER] * 4])
        address, n, keys, values, key_scales, value_scales = made.args
        sums = Sums(code, self.kind, address)
        rows = [code.add(n, number(i)) for i in range(count)]
        self._scores(code, sums, rows, keys)
        scales = (key_scales, value_scales) if self.kind.stored == "int8" else None
        faded = [self._softmax(code, sums, row, scales) for row in rows]
        self._weighted(code, sums, rows, values, faded)
        code.ret_void()
        return made

    def _scores(self, code: Code, sums: Sums, rows: Sequence[Value], keys: Value) -> None:
        how, there = arithmetic(self.kind.inner, self.processor), sums.there()
        a_key = number(self.kind.size * bytes_of(self.kind))
        last = code.sub(there, number(1))
        queries = [sums.query(row) for row in rows]
        with code.steps(there, _TOGETHER) as (key, _):
            places = [code.least(code.add(key, number(n)), last) for n in range(_TOGETHER)]
            starts = [code.past(keys, code.product(place, a_key)) for place in places]
            found = [nothing(how.lanes)] * (len(rows) * _TOGETHER)
            for at in range(0, self.kind.size, how.width):
                theirs = [self._numbers(code, how, start, at) for start in starts]
                for i, query in enumerate(queries):
                    own = how.numbers(code, code.past(query, at * sums.inner))
                    for j, numbers in enumerate(theirs):
                        n = i * _TOGETHER + j
                        found[n] = how.added(code, found[n], numbers, own)
            for i, row in enumerate(rows):
                four = totals(code, found[i * _TOGETHER : (i + 1) * _TOGETHER], how.lanes)
                code.write(four, sums.scores(row), code.product(key, 4))

    def _softmax(
        self, code: Code, sums: Sums, row: Value, scales: tuple[Value, Value] | None
    ) -> Value:
        """Scores become weights; gives the factor of what was summed up before."""
        lanes = self.processor.lanes
        kind, steps = vector(FLOAT, lanes), range(0, KEYS, lanes)
        fill = lambda value: ir.Constant(kind, [value] * lanes)
        scores = sums.scores(row)
        left = code.sub(code.read(sums.seen(row), INT64), sums.start())
        seen = code.filled(code.trunc(left, INT32), lanes)
        place = lambda at: ir.Constant(vector(INT32, lanes), [at + n for n in range(lanes)])
        visible = [code.icmp_signed("<", place(at), seen) for at in steps]
        found = []
        for at, there in zip(steps, visible, strict=True):
            score = code.fmul(code.read(scores, kind, 4 * at), fill(self.kind.size**-0.5))
            if scales is not None:
                score = code.fmul(score, code.read_where(there, scales[0], 4 * at))
            found.append(code.select(there, score, fill(MASKED)))
        highest = sums.highest(row)
        before = code.read(highest, FLOAT)
        top = before
        for score in found:
            one = largest(code, score)
            top = code.select(code.fcmp_ordered(">", one, top), one, top)
        code.write(top, highest)
        faded = exp(code, code.fsub(code.filled(before, lanes), code.filled(top, lanes)))
        added = nothing(lanes)
        for at, there, score in zip(steps, visible, found, strict=True):
            weights = exp(code, code.fsub(score, code.filled(top, lanes)))
            weights = code.select(there, weights, fill(0.0))
            added = code.fadd(added, weights)
            if scales is not None:
                weights = code.fmul(weights, code.read_where(there, scales[1], 4 * at))
            code.write(weights, scores, 4 * at)
        factor = code.extract_element(faded, ir.Constant(INT32, 0))
        before = code.fmul(code.read(sums.total(row), FLOAT), factor)
        code.write(code.fadd(before, total(code, added)), sums.total(row))
        return faded

    def _weighted(
        self,
        code: Code,
        sums: Sums,
        rows: Sequence[Value],
        values: Value,
        faded: Sequence[Value],
    ) -> None:
        """Add values by their weights to what was summed up before, times its factor."""
        lanes = self.processor.lanes
        how = Singles(lanes, 4, self.processor.tables)
        a_value = number(self.kind.size * bytes_of(self.kind))
        for at in range(0, self.kind.size, _TOGETHER * lanes):
            parts = range(at, min(at + _TOGETHER * lanes, self.kind.size), lanes)
            before = [
                code.fmul(code.read(sums.y(row), vector(FLOAT, lanes), 4 * part), factor)
                for row, factor in zip(rows, faded, strict=True)
                for part in parts
            ]
            with code.steps(sums.there(), 1, *before) as (key, held):
                start = code.past(values, code.product(key, a_value))
                theirs = [self._numbers(code, how, start, part) for part in parts]
                for i, row in enumerate(rows):
                    weight = code.read(sums.scores(row), FLOAT, code.product(key, 4))
                    weight = code.filled(weight, lanes)
                    for j, numbers in enumerate(theirs):
                        n = i * len(parts) + j
                        held[n] = multiplied(code, held[n], numbers, weight)
            for n, value in enumerate(held):
                i, j = divmod(n, len(parts))
                code.write(value, sums.y(rows[i]), 4 * parts[j])

    def _numbers(self, code: Code, how: Arithmetic, start: Value, at: int) -> Value:
        """What is stored from number `at` of a head on, as the arithmetic has it."""
        place = code.past(start, at * bytes_of(self.kind))
        if self.kind.stored == "int8":
            codes = code.read(place, vector(BYTE, how.width))
            return how.integers(code, code.sext(codes, vector(INT32, how.width)))
        if how.size == bytes_of(self.kind):
            return how.numbers(code, place)
        return Singles(how.lanes, bytes_of(self.kind), how.tables).numbers(code, place)


def bytes_of(kind: Attention) -> int:
    """Bytes of a number."""
    return {"float32": 4, "bfloat16": 2, "int8": 1}[kind.stored]


def nothing(lanes: int) -> Value:
    return ir.Constant(vector(FLOAT, lanes), [0.0] * lanes)
