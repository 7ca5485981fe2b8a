"""How XLA calls a job, and how threads share it: a handler of XLA's foreign functions.

Layouts are those of XLA's c_api.h (jax.ffi.include_dir()), version 0.3, whose structs only grow at
their ends. A job is cut into turns: some prepare it, the others do it. Whoever is free takes the
next, so a thread that comes late keeps nobody waiting. The last to leave frees what they shared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llvmlite import ir

from qwen_jax.nn.cpu.code import INT32, INT64, POINTER, VOID, Code, Value, function, number

HANDLER = "handler"
_VERSION = (0, 3)
# bytes before a field
_FRAME = {"extension": 8, "api": 16, "context": 24, "count": 56, "arguments": 72, "results": 112}
_EXTENSION = {"type": 8, "metadata": 24}
_METADATA = {"major": 24, "minor": 28}
_BUFFER = {"data": 24, "dimensions": 40}
_API = {"schedule": 48 + 11 * 8, "threads": 48 + 12 * 8}
_OWN = ("preparations", "turns", "next", "done", "users")
_ALIGNED = 64  # bytes: a line of a cache


@dataclass(frozen=True)
class Asked:
    """What a job is told, by name, and how much of it there is."""

    told: Mapping[str, Value]
    turns: Value
    preparations: Value
    beside: Value  # bytes of memory for what is prepared, which it is told too


class Job(Protocol):
    """What XLA may call for. A task is what it was told, eight bytes each, in their order."""

    @property
    def names(self) -> Sequence[str]:
        """Of what it is told."""
        ...

    def asked(self, code: Code, call: "Call") -> Asked: ...

    def prepare(self, module: ir.Module) -> ir.Function:
        """prepare(task, number of a preparation)."""
        ...

    def turn(self, module: ir.Module) -> ir.Function:
        """turn(task, number), when all is prepared."""
        ...


@dataclass(frozen=True)
class Call:
    """The frame that XLA gives: arrays by their places, and how many there are."""

    code: Code
    frame: Value

    def count(self) -> Value:
        return self.code.read(self.frame, INT64, _FRAME["count"])

    def argument(self, place: Value | int) -> "Buffer":
        return self._buffer("arguments", place)

    def result(self) -> "Buffer":
        return self._buffer("results", 0)

    def _buffer(self, which: str, place: Value | int) -> "Buffer":
        buffers = self.code.read(self.frame, POINTER, _FRAME[which])
        return Buffer(self.code, self.code.read(buffers, POINTER, self.code.product(place, 8)))


@dataclass(frozen=True)
class Buffer:
    """An array of XLA's."""

    code: Code
    address: Value

    def data(self) -> Value:
        return self.code.read(self.address, POINTER, _BUFFER["data"])

    def dimension(self, axis: int) -> Value:
        dimensions = self.code.read(self.address, POINTER, _BUFFER["dimensions"])
        return self.code.read(dimensions, INT64, 8 * axis)


def write(module: ir.Module, job: Job) -> None:
    """Put the function HANDLER into a module: what XLA is to call for such a job."""
    prepare, leave = job.prepare(module), _leave(module, job)
    work = _work(module, job, prepare, job.turn(module))
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
    at, asked = _places(job), job.asked(code, Call(code, frame))
    task = _task(code, job, asked)
    turns = code.add(asked.preparations, asked.turns)
    threads = code.least(_threads(code, api, context), turns)
    helpers = code.select(
        code.icmp_signed(">", threads, number(1)), code.sub(threads, number(1)), number(0)
    )
    first = code.least(asked.preparations, number(1))
    own = (asked.preparations, turns, first, first, code.add(helpers, number(1)))
    for name, value in zip(_OWN, own, strict=True):
        code.write(value, task, at[name])
    with code.steps(first, 1) as (turn, _):  # or all would wait for a helper that has just begun
        code.call(prepare, [task, turn])
    with code.steps(helpers, 1):
        _call(code, api, "schedule", context, helper, task)
    code.call(work, [task])
    _wait(code, job, task, turns)
    code.call(leave, [task])
    code.ret(nothing)


def _places(job: Job) -> dict[str, int]:
    """Where in a task each thing lies."""
    return {name: 8 * n for n, name in enumerate((*job.names, *_OWN))}


def _task(code: Code, job: Job, asked: Asked) -> Value:
    """Memory for a task and what is beside it, with what the job is told."""
    places = _places(job)
    head = -(-8 * len(places) // _ALIGNED) * _ALIGNED
    size = code.add(number(head + _ALIGNED - 1), asked.beside)
    task = code.ask("aligned_alloc", POINTER, number(_ALIGNED), code.and_(size, number(-_ALIGNED)))
    for name, value in asked.told.items():
        code.write(value, task, places[name])
    if "beside" in places:
        code.write(code.past(task, head), task, places["beside"])
    return task


def _work(module: ir.Module, job: Job, prepare: ir.Function, turn_: ir.Function) -> ir.Function:
    """Take turns until there are none."""
    code, made = function(module, "work", [POINTER])
    (task,) = made.args
    places = _places(job)
    preparations, turns = (code.read(task, INT64, places[n]) for n in ("preparations", "turns"))
    again, take, end = (code.append_basic_block(name) for name in ("again", "take", "end"))
    code.branch(again)
    code.position_at_end(again)
    turn = _counted(code, job, task, "next", "add")
    code.cbranch(code.icmp_signed("<", turn, turns), take, end)
    code.position_at_end(take)
    with code.if_else(code.icmp_signed("<", turn, preparations)) as (first, then):
        with first:
            code.call(prepare, [task, turn])
        with then:
            _wait(code, job, task, preparations)
            code.call(turn_, [task, code.sub(turn, preparations)])
    _counted(code, job, task, "done", "add")
    code.branch(again)
    code.position_at_end(end)
    code.ret_void()
    return made


def _leave(module: ir.Module, job: Job) -> ir.Function:
    code, made = function(module, "leave", [POINTER])
    (task,) = made.args
    before = _counted(code, job, task, "users", "sub")
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


def _wait(code: Code, job: Job, task: Value, turns: Value) -> None:
    """Until so many turns are done, the first ones, which others took."""
    look, rest, end = (code.append_basic_block(name) for name in ("look", "rest", "end"))
    code.branch(look)
    code.position_at_end(look)
    place = code.past(task, _places(job)["done"])
    done = code.load_atomic(place, "acquire", 8, typ=INT64)
    code.cbranch(code.icmp_signed("<", done, turns), rest, end)
    code.position_at_end(rest)
    code.ask("sched_yield", INT32)
    code.branch(look)
    code.position_at_end(end)


def _counted(code: Code, job: Job, task: Value, name: str, how: str) -> Value:
    """What a count was that others change too, before it is one more or less."""
    place = code.past(task, _places(job)[name])
    return code.atomic_rmw(how, place, number(1), "acq_rel")


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
