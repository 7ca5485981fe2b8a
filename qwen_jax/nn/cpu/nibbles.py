"""int4 where no tables are: codes are masked where they lie, eight in a word of 32 bits.

So each is 16^n times as large, which float32 holds exactly, and is multiplied with x / 16^n (but
what is below 2e-31 of x is lost). That x and the order of its numbers are prepared, once for all
outputs. Nor is anything taken off codes: a group's sums begin at what all its codes have too much,
times the sum of x. Where x has a mean, or one huge number, that costs digits: up to 1e-6 of an
output in groups of 128, 1e-5 beside a number 3000 times the others, 1e-4 in whole rows of 4096.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from qwen_jax.nn.cpu.code import BYTE, FLOAT, INT32, Code, Value, number, vector
from qwen_jax.nn.cpu.weights import Reader, Singles

_BITS, _CODES = 4, 8  # of a code; of a word


def step(lanes: int) -> int:
    """Inputs of a group that are read at once; groups of half as many are `short`."""
    return _CODES * lanes


@dataclass(frozen=True)
class Nibbles(Reader):
    """Of halves; see weights.Halves. x lies as `put` writes it."""

    arithmetic: Singles
    short: bool  # a register has its words twice: lanes of its second half take later codes
    told: int  # bytes of a number of x that a product is told

    x: ClassVar[str] = "beside"

    @property
    def lead(self) -> int:  # type: ignore[override]
        """The sums of a group of x."""
        return self.arithmetic.lanes

    @property
    def words(self) -> int:
        return self.arithmetic.lanes // (1 + self.short)

    @property
    def taken(self) -> int:
        return 4 * self.words

    @property
    def places(self) -> list[list[int]]:
        """Of each run, which code of its word a lane takes."""
        runs = _CODES // (1 + self.short)
        lanes = range(self.arithmetic.lanes)
        return [[run + runs * (lane // self.words) for lane in lanes] for run in range(runs)]

    def bytes_of(self, code: Code, inputs: Value) -> Value:
        return code.ashr(inputs, number(1))

    def x_at(self, code: Code, taken: Value, half: Value, run: int) -> Value:
        return code.add(code.product(taken, 2 * 4), number(4 * self.arithmetic.lanes * run))

    def prepared(self, code: Code, zero: Value | None) -> Value:
        """What its codes have too much, negative."""
        eight = ir.Constant(INT32, -8)
        off = eight if zero is None else code.sub(eight, zero)
        return code.filled(code.sitofp(off, FLOAT), self.arithmetic.lanes)

    def begun(self, code: Code, x: Value, prepared: Value) -> Value:
        lanes = self.arithmetic.lanes
        return code.fmul(prepared, code.read(x, vector(FLOAT, lanes), -4 * lanes))

    def read(self, code: Code, address: Value, prepared: Value) -> Sequence[Value]:
        words = code.bitcast(
            code.read(address, vector(BYTE, self.taken)), vector(INT32, self.words)
        )
        words = code.shuffled(words, words, [*range(self.words)] * (1 + self.short))
        fill = lambda numbers: ir.Constant(words.type, numbers)
        *most, last = self.places
        values = [code.and_(words, fill([15 << _BITS * n for n in places])) for places in most]
        # the highest bits of a word are its sign: these codes are moved instead
        moved = code.lshr(words, fill([_BITS * n for n in last]))
        values.append(code.and_(moved, fill([15] * len(last))))
        return [self.arithmetic.integers(code, value) for value in values]

    def put(self, code: Code, x: Value, to: Value, inputs: Value, groups: Value) -> None:
        """Write a row as it is read: float32 [groups lead+size], a group's sums before it."""
        lanes, taken = self.arithmetic.lanes, self.taken
        size = code.sdiv(inputs, groups)
        half = code.product(size, self.told // 2)
        numbers = Singles(taken, self.told, tables=False).numbers
        nothing = ir.Constant(vector(FLOAT, lanes), [0.0] * lanes)
        with code.steps(groups, 1) as (group, _):
            start = code.past(x, code.product(group, size, self.told))
            place = code.past(to, self.group(code, group, size))
            with code.steps(code.ashr(size, number(1)), taken, nothing) as (at, sums):
                low = code.past(start, code.product(at, self.told))
                both = numbers(code, low), numbers(code, code.past(low, half))
                for run, places in enumerate(self.places):
                    order = [
                        4 * (lane % self.words) + n // 2 + taken * (n % 2)
                        for lane, n in enumerate(places)
                    ]
                    part = code.shuffled(*both, order)
                    sums[0] = code.fadd(sums[0], part)
                    if places != self.places[-1]:
                        part = code.fmul(part, ir.Constant(part.type, [16.0**-n for n in places]))
                    code.write(part, code.past(place, self.x_at(code, at, half, run)))
            code.write(sums[0], place, -4 * lanes)
