"""Reading XLA's optimised HLO: what one pass of a decode loop runs, copies and communicates."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_COLLECTIVES = (
    "all-reduce all-gather reduce-scatter all-to-all collective-permute ragged-all-to-all".split()
)
_FREE = frozenset(  # instructions that run nothing by themselves
    "parameter tuple get-tuple-element bitcast constant while conditional call after-all "
    "partition-id replica-id add-dependency opt-barrier copy-done slice-done".split()
)
_NO_KERNEL = ("ConcatBitcast", "AssumeGatherIndicesInBound", "annotate_device_placement")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|(?:true|false)_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)


@dataclass(frozen=True)
class Array:
    """One array an instruction gives."""

    dtype: str
    shape: tuple[int, ...]
    near: bool  # in a TPU's on-chip memory: a prefetch or a short-lived value, not a copy in HBM

    @property
    def bytes(self) -> int:
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D.*$", "", self.dtype[1:]) or 0)
        return math.prod(self.shape) * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Instruction:
    name: str
    op: str
    outputs: tuple[Array, ...]
    called: tuple[str, ...]  # names of computations
    root: bool
    text: str  # operands and attributes

    def aliases(self, output: int) -> bool:
        """Whether this output lies where an operand lay."""
        found = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", self.text)
        place = "{}" if len(self.outputs) == 1 else f"{{{output}}}"
        return found is not None and f"{place}: (" in found[1]

    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.text.split("metadata=")[0])

    def number(self) -> int:
        """Of a constant; 0 for anything else."""
        found = re.match(r"(\d+)\)", self.text)
        return int(found[1]) if found and self.op == "constant" else 0

    @property
    def source(self) -> str | None:
        """The operation of the program that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.op} {self.name} ({self.source or 'from no operation'})"


class Module:
    """The computations of an optimised HLO module, from its text."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        current: list[Instruction] = []
        for line in text.splitlines():
            if found := _HEAD.match(line):
                current = self.computations.setdefault(found[2], [])
                if found[1]:
                    self.entry = found[2]
            elif found := _LINE.match(line):
                current.append(_instruction(*found.groups()))

    def loop(self) -> str:
        """The body of the entry's longest loop: a decode step."""
        whiles = [i for i in self.walk(self.entry, branches=True) if i.op == "while"]
        bodies = [name for i in whiles for name in i.called]
        return max(bodies, key=lambda name: len(self.computations[name]))

    def walk(self, name: str, branches: bool) -> Iterator[Instruction]:
        """Every instruction a computation leads to, outside fusions; branches: of conditions."""
        for instruction in self.computations[name]:
            yield instruction
            follow = instruction.op in ("while", "call", "async-start") or (
                branches and instruction.op == "conditional"
            )
            for callee in instruction.called if follow else ():
                yield from self.walk(callee, branches)

    def runs(self, name: str, fusions: bool, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Every instruction, in fusions too if asked, and how often a pass runs it."""
        for instruction in self.computations[name]:
            yield instruction, times
            often = times * self.trips(instruction) if instruction.op == "while" else times
            for callee in instruction.called if fusions or instruction.op != "fusion" else ():
                yield from self.runs(callee, fusions, often)

    def trips(self, loop: Instruction) -> int:
        """How often a while runs: as XLA noted, or up to its bound from 0 by its step; else 1."""
        if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(noted[1])
        condition, body = (self._named(loop, kind) for kind in ("condition", "body"))
        counter = [i for i in condition.values() if i.op == "get-tuple-element"]
        bound = [i for i in condition.values() if i.op == "constant" and i.outputs[0].shape == ()]
        if len(counter) != 1 or len(bound) != 1 or not bound[0].number():
            return 1
        index = re.search(r"index=(\d+)", counter[0].text)
        (root,) = (i for i in body.values() if i.root)
        step = body.get(root.operands()[int(index[1])]) if index else None
        while step is not None and step.op == "copy":
            step = body.get(step.operands()[0])
        steps = [body[n].number() for n in step.operands() if n in body] if step else []
        return -(-bound[0].number() // max(1, *steps, 1))

    def _named(self, instruction: Instruction, kind: str) -> dict[str, Instruction]:
        found = re.search(rf"{kind}=%?([\w.\-]+)", instruction.text)
        assert found is not None, instruction
        return {i.name: i for i in self.computations[found[1]]}

    def kernels(self, name: str) -> int:
        """Launches in one pass, not counting branches of conditions (a greedy step takes none)."""
        runs = lambda i: i.op not in _FREE and not any(target in i.text for target in _NO_KERNEL)
        return sum(map(runs, self.walk(name, branches=False)))

    def named(self, name: str, part: str) -> int:
        """Calls of kernels of our own, in one pass, from operations with such a name."""
        own = [i for i in self.walk(name, branches=False) if i.op == "custom-call"]
        return sum(part in str(i) for i in own)

    def cycles(self, name: str) -> int:
        """A TPU compiler's estimate for one pass, good for comparing two forms of one program."""
        total = 0
        for instruction in self.computations[name]:
            found = re.search(r'"estimated_cycles":"(\d+)"', instruction.text)
            total += int(found[1]) if found else 0
            if instruction.op in ("while", "call"):
                often = self.trips(instruction) if instruction.op == "while" else 1
                total += often * sum(map(self.cycles, instruction.called))
        return total

    def large(self, name: str, least: int) -> list[tuple[Instruction, Array]]:
        """Arrays of at least so many bytes that a pass makes in main memory, not in place."""
        return [
            (instruction, array)
            for instruction in self.walk(name, branches=True)
            if not instruction.op.endswith("-start")
            and (instruction.op not in _FREE or instruction.op.endswith("-done"))
            and not self._in_place(instruction)
            for index, array in enumerate(instruction.outputs)
            if array.bytes >= least and not array.near and not instruction.aliases(index)
        ]

    def _in_place(self, instruction: Instruction) -> bool:
        writes = ("dynamic-update-slice", "scatter")
        if instruction.op != "fusion":
            return instruction.op in writes
        by_name = {i.name: i for i in self.computations[instruction.called[0]]}
        roots = [i for i in by_name.values() if i.root]
        if roots[0].op == "tuple":
            roots = [by_name[n] for n in re.findall(r"%([\w.\-]+)", roots[0].text) if n in by_name]
        return all(_source(root, by_name).op in writes for root in roots)

    def sent(self, name: str) -> list[tuple[str, tuple[Array, ...], int, Instruction]]:
        """Collectives: their kind, what one device receives or reduces, how often in a pass."""
        seen: dict[Any, Any] = {}
        for instruction, times in self.runs(name, fusions=True):
            kind = instruction.op.removesuffix("-start")
            if kind in _COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", instruction.text)  # shard_map has one
                arrays = instruction.outputs
                if kind != instruction.op and kind != "all-reduce":
                    # a start gives its inputs, as many results, and counters
                    arrays = tuple(array for array in arrays if array.shape)
                    arrays = arrays[len(arrays) // 2 :]
                key = (channel[1], instruction.source) if channel else instruction.name
                seen[key] = kind, arrays, times, instruction
        return list(seen.values())

    def collectives(self, name: str) -> dict[str, dict[str, int]]:
        """kind -> count and bytes that one device receives or reduces in a pass."""
        count, total = Counter[str](), Counter[str]()
        for kind, arrays, times, _ in self.sent(name):
            count[kind] += times
            total[kind] += times * sum(array.bytes for array in arrays)
        return {kind: {"count": count[kind], "bytes": total[kind]} for kind in sorted(count)}


def _instruction(root: str | None, name: str, kind: str, op: str, text: str) -> Instruction:
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), "S(1)" in (layout or ""))
        for dtype, shape, layout in _ARRAY.findall(kind)
    )
    called = [n.strip(" %") for a, b in _CALLED.findall(text) for n in (a or b).split(",")]
    return Instruction(name, op, arrays, tuple(called), bool(root), text)


def _source(instruction: Instruction, by_name: dict[str, Instruction]) -> Instruction:
    """What computed the value, past changes of its type alone."""
    while instruction.op in ("bitcast", "copy"):
        operand = re.search(r"%([\w.\-]+)", instruction.text)
        if operand is None or operand[1] not in by_name:
            break
        instruction = by_name[operand[1]]
    return instruction
