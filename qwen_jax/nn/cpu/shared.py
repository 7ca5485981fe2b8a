"""How XLA calls a product, and how threads share it: a handler of XLA's foreign functions.

Layouts are those of XLA's c_api.h (jax.ffi.include_dir()), version 0.3, whose structs only grow at
their ends. A product is cut into turns: some prepare it, the others each compute a run of outputs.
Whoever is free takes the next, so a thread that comes late keeps nobody waiting. The last to leave
frees what they shared.
"""

from typing import Protocol

from llvmlite import ir

from qwen_jax.nn.cpu.amx import Amx, suits
from qwen_jax.nn.cpu.code import INT32, INT64, POINTER, VOID, Code, Value, function, number
from qwen_jax.nn.cpu.kinds import Kind
from qwen_jax.nn.cpu.tiles import TOLD, Vectors
from qwen_jax.nn.cpu.weights import Processor

HANDLER = "product"
_VERSION = (0, 3)
# bytes before a field
_FRAME = {"extension": 8, "api": 16, "context": 24, "count": 56, "arguments": 72, "results": 112}
_EXTENSION = {"type": 8, "metadata": 24}
_METADATA = {"major": 24, "minor": 28}
_BUFFER = {"data": 24, "dimensions": 40}
_API = {"schedule": 48 + 11 * 8, "threads": 48 + 12 * 8}
_OWN = ("run", "preparations", "turns", "next", "done", "users")
_ASKED = (*TOLD, *_OWN)  # of a task, all eight bytes
_AT = {name: 8 * n for n, name in enumerate(_ASKED)}
_ALIGNED = 64  # bytes: a line of a cache
_TASK = -(-8 * len(_ASKED) // _ALIGNED) * _ALIGNED  # bytes; behind it lies what is prepared


class Way(Protocol):
    """How a product is computed: first what is prepared of it, in turns, then its outputs."""

    @property
    def outputs(self) -> int: ...  # that are computed together

    @property
    def run(self) -> int: ...  # bytes of weights that a thread takes at a time

    def an_output(self, code: Code, inputs: Value) -> Value:
        """Bytes of its weights."""
        ...

    def beside(self, code: Code, rows: Value, inputs: Value) -> Value:
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


def write(module: ir.Module, kind: Kind, processor: Processor) -> None:
    """Put the function HANDLER into a module: what XLA is to call for such a product."""
    way = _way(kind, processor)
    prepare, leave = way.prepare(module), _leave(module)
    work = _work(module, prepare, way.part(module))
    helper = _helper(module, work, leave)
    code, made = function(module, HANDLER, [POINTER], POINTER)
    (frame,) = made.args
    nothing = ir.Constant(POINTER, None)
    extension = code.read(frame, POINTER, _FRAME["extension"])
    with code.if_then(code.icmp_unsigned("!=", extension, nothing)):
        kind_of = code.read(extension, INT32, _EXTENSION["type"])
        with code.if_then(code.icmp_signed("==", kind_of, ir.Constant(INT32, 1))):
            metadata = code.read(extension, POINTER, _EXTENSION["metadata"])
            for field, value in zip(("major", "minor"), _VERSION, strict=True):
                code.write(ir.Constant(INT32, value), metadata, _METADATA[field])
            code.ret(nothing)
            code.position_at_end(code.append_basic_block("never"))
    context, api = (code.read(frame, POINTER, _FRAME[name]) for name in ("context", "api"))
    task, turns = _tell(code, kind, way, frame)
    threads = code.least(_threads(code, api, context), turns)
    helpers = code.select(
        code.icmp_signed(">", threads, number(1)), code.sub(threads, number(1)), number(0)
    )
    code.write(code.add(helpers, number(1)), task, _AT["users"])
    first = code.least(code.read(task, INT64, _AT["preparations"]), number(1))
    with code.steps(first, 1) as (turn, _):  # or all would wait for a helper that has just begun
        code.call(prepare, [task, turn])
    for name in ("next", "done"):
        code.write(first, task, _AT[name])
    with code.steps(helpers, 1):
        _call(code, api, "schedule", context, helper, task)
    code.call(work, [task])
    _wait(code, task, turns)
    code.call(leave, [task])
    code.ret(nothing)


def _way(kind: Kind, processor: Processor) -> Way:
    return Amx() if processor.tiles and suits(kind) else Vectors(kind, processor)


def _tell(code: Code, kind: Kind, way: Way, frame: Value) -> tuple[Value, Value]:
    """A task, and how many turns it takes."""
    buffers = _buffers(code, kind, frame)
    dimension = lambda name, axis: code.read(
        code.read(buffers[name], POINTER, _BUFFER["dimensions"]), INT64, 8 * axis
    )
    rows, out, inputs = dimension("x", 0), dimension("weights", 0), dimension("x", 1)
    size = code.add(number(_TASK + _ALIGNED - 1), way.beside(code, rows, inputs))
    size = code.and_(size, number(-_ALIGNED))
    task = code.ask("aligned_alloc", POINTER, number(_ALIGNED), size)
    for name, buffer in buffers.items():
        code.write(code.read(buffer, POINTER, _BUFFER["data"]), task, _AT[name])
    code.write(code.past(task, _TASK), task, _AT["beside"])
    run = code.sdiv(number(way.run), code.product(way.an_output(code, inputs), way.outputs))
    run = code.product(code.most(run, number(1)), way.outputs)
    preparations = way.preparations(code, rows)
    turns = code.add(preparations, code.sdiv(code.add(out, code.sub(run, number(1))), run))
    counts = {
        "rows": rows,
        "out": out,
        "inputs": inputs,
        "groups": dimension("scales", 1) if kind.integers else number(1),
        "run": run,
        "preparations": preparations,
        "turns": turns,
    }
    for name, count in counts.items():
        code.write(count, task, _AT[name])
    return task, turns


def _buffers(code: Code, kind: Kind, frame: Value) -> dict[str, Value]:
    """What XLA gives: x, the number of a layer, the weights of all layers, their scales, zeros."""
    arguments = code.read(frame, POINTER, _FRAME["arguments"])
    argument = lambda n: code.read(arguments, POINTER, code.product(n, 8))
    names = ["weights", *["scales"] * kind.integers, *["zeros"] * kind.zeros]
    others = code.sub(code.read(frame, INT64, _FRAME["count"]), number(2))
    layers = code.sdiv(others, number(len(names)))
    layer = code.read(code.read(argument(1), POINTER, _BUFFER["data"]), INT32)
    first = code.add(code.sext(layer, INT64), number(2))
    buffers = {
        name: argument(code.add(first, code.product(layers, n))) for n, name in enumerate(names)
    }
    y = code.read(code.read(frame, POINTER, _FRAME["results"]), POINTER)
    return buffers | {"x": argument(0), "y": y}


def _work(module: ir.Module, prepare: ir.Function, part: ir.Function) -> ir.Function:
    """Take turns until there are none."""
    code, made = function(module, "work", [POINTER])
    (task,) = made.args
    names = ("out", "run", "preparations", "turns")
    out, run, preparations, turns = (code.read(task, INT64, _AT[name]) for name in names)
    again, take, end = (code.append_basic_block(name) for name in ("again", "take", "end"))
    code.branch(again)
    code.position_at_end(again)
    turn = _counted(code, task, "next", "add")
    code.cbranch(code.icmp_signed("<", turn, turns), take, end)
    code.position_at_end(take)
    with code.if_else(code.icmp_signed("<", turn, preparations)) as (first, then):
        with first:
            code.call(prepare, [task, turn])
        with then:
            _wait(code, task, preparations)
            start = code.product(code.sub(turn, preparations), run)
            code.call(part, [task, start, code.least(code.add(start, run), out)])
    _counted(code, task, "done", "add")
    code.branch(again)
    code.position_at_end(end)
    code.ret_void()
    return made


def _leave(module: ir.Module) -> ir.Function:
    code, made = function(module, "leave", [POINTER])
    (task,) = made.args
    before = _counted(code, task, "users", "sub")
    with code.if_then(code.icmp_signed("==", before, number(1))):
        code.ask("free", VOID, task)
    code.ret_void()
    return made


def _helper(module: ir.Module, *calls: ir.Function) -> ir.Function:
    """What another thread runs."""
    code, made = function(module, "helper", [POINTER])
    for call in calls:
        code.call(call, made.args)
    code.ret_void()
    return made


def _wait(code: Code, task: Value, turns: Value) -> None:
    """Until so many turns are done, the first ones, which others took."""
    look, rest, end = (code.append_basic_block(name) for name in ("look", "rest", "end"))
    code.branch(look)
    code.position_at_end(look)
    done = code.load_atomic(code.past(task, _AT["done"]), "acquire", 8, typ=INT64)
    code.cbranch(code.icmp_signed("<", done, turns), rest, end)
    code.position_at_end(rest)
    code.ask("sched_yield", INT32)
    code.branch(look)
    code.position_at_end(end)


def _counted(code: Code, task: Value, name: str, how: str) -> Value:
    """What a count was that others change too, before it is one more or less."""
    return code.atomic_rmw(how, code.past(task, _AT[name]), number(1), "acq_rel")


# --- XLA's threads ----------------------------------------------------------------------------
_CALL = ir.FunctionType(POINTER, [POINTER]).as_pointer()


def _threads(code: Code, api: Value, context: Value) -> Value:
    count = code.room(1)
    code.write(number(1), count)
    _call(code, api, "threads", context, count)
    return code.read(count, INT64)


def _call(code: Code, api: Value, name: str, *fields: Value) -> None:
    """A function of XLA's, whose argument has a size, no extension, and these.

    Errors are not asked for: there are none where XLA has threads, and where it has not, the one
    that is here does everything.
    """
    values = [number(8 * (2 + len(fields))), ir.Constant(POINTER, None), *fields]
    struct = code.room(len(values))
    for n, value in enumerate(values):
        code.write(value, struct, 8 * n)
    code.call(code.read(api, _CALL, _API[name]), [struct])
