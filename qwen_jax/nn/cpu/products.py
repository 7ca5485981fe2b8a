"""A product of x with weights as a job that threads share: each turn computes a run of outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llvmlite import ir

from qwen_jax.nn.cpu.amx import Amx, suits
from qwen_jax.nn.cpu.blocks import Vectors
from qwen_jax.nn.cpu.code import INT32, INT64, POINTER, Code, Value, function, number
from qwen_jax.nn.cpu.kinds import Kind
from qwen_jax.nn.cpu.shared import Asked, Buffer, Call
from qwen_jax.nn.cpu.tiles import TOLD, told
from qwen_jax.nn.cpu.weights import Processor


class Way(Protocol):
    """How a product is computed: first what is prepared of it, in turns, then its outputs."""

    @property
    def outputs(self) -> int: ...  # that are computed together

    def run(self, code: Code, rows: Value) -> Value:
        """Bytes of weights that a thread takes at a time."""
        ...

    def an_output(self, code: Code, inputs: Value) -> Value:
        """Bytes of its weights."""
        ...

    def beside(self, code: Code, rows: Value, inputs: Value, groups: Value) -> Value:
        """Bytes of memory for what is prepared."""
        ...

    def preparations(self, code: Code, rows: Value) -> Value:
        """How many turns they take."""
        ...

    def prepare(self, module: ir.Module) -> ir.Function:
        """prepare(task, turn)."""
        ...

    def part(self, module: ir.Module) -> ir.Function:
        """part(task, first, last): every row with outputs from first to last."""
        ...


def way(kind: Kind, processor: Processor) -> Way:
    return Amx() if processor.tiles and suits(kind) else Vectors(kind, processor)


@dataclass(frozen=True)
class Product:
    """A `shared.Job`."""

    kind: Kind
    way: Way

    @property
    def names(self) -> Sequence[str]:
        return TOLD

    def asked(self, code: Code, call: Call) -> Asked:
        way, buffers = self.way, self._buffers(code, call)
        rows, inputs = (buffers["x"].dimension(axis) for axis in (0, 1))
        out = buffers["weights"].dimension(0)
        run = code.sdiv(way.run(code, rows), code.product(way.an_output(code, inputs), way.outputs))
        run = code.product(code.most(run, number(1)), way.outputs)
        counts = {
            "rows": rows,
            "out": out,
            "inputs": inputs,
            "groups": buffers["scales"].dimension(1) if self.kind.integers else number(1),
            "run": run,
        }
        return Asked(
            told={name: buffer.data() for name, buffer in buffers.items()} | counts,
            turns=code.sdiv(code.add(out, code.sub(run, number(1))), run),
            preparations=way.preparations(code, rows),
            beside=way.beside(code, rows, inputs, counts["groups"]),
        )

    def _buffers(self, code: Code, call: Call) -> dict[str, Buffer]:
        """x, the number of a layer, the weights of all layers, their scales, zeros."""
        names = ["weights", *["scales"] * self.kind.integers, *["zeros"] * self.kind.zeros]
        layers = code.sdiv(code.sub(call.count(), number(2)), number(len(names)))
        layer = code.read(call.argument(1).data(), INT32)
        first = code.add(code.sext(layer, INT64), number(2))
        of_layer = {
            name: call.argument(code.add(first, code.product(layers, n)))
            for n, name in enumerate(names)
        }
        return of_layer | {"x": call.argument(0), "y": call.result()}

    def prepare(self, module: ir.Module) -> ir.Function:
        return self.way.prepare(module)

    def turn(self, module: ir.Module) -> ir.Function:
        part = self.way.part(module)
        code, made = function(module, "turn", [POINTER, INT64])
        task, turn = made.args
        given = told(code, task)
        start = code.product(turn, given["run"])
        code.call(part, [task, start, code.least(code.add(start, given["run"]), given["out"])])
        code.ret_void()
        return made
