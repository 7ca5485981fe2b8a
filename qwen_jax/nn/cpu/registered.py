"""What LLVM made for this processor, and XLA knows by name."""

import ctypes
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from itertools import takewhile
from pathlib import Path

import jax
from llvmlite import binding as llvm
from llvmlite import ir

from qwen_jax.files import kept_code
from qwen_jax.nn.cpu.attention import Attending
from qwen_jax.nn.cpu.kinds import Attention, Kind
from qwen_jax.nn.cpu.products import Product, way
from qwen_jax.nn.cpu.shared import HANDLER, Job, write
from qwen_jax.nn.cpu.weights import Processor

FOLDER = "QWEN_JAX_MACHINE_CODE"  # the environment's name for where it is kept; without, nowhere
log = logging.getLogger("qwen_jax.machine_code")
_LOCK = threading.Lock()
_MADE: dict[str, llvm.ExecutionEngine] = {}  # kept: XLA calls into them
_ARCH_PRCTL, _ASK_FOR_STATE, _TILES = 158, 0x1023, 18  # of Linux on x86: asm/prctl.h
_NEWEST = ("amx", "avx10", "avx512")  # families of features, from the newest on
_FLAG = re.compile(r"--xla_cpu_max_isa=(\w+)")


def register(kind: Kind | Attention, name: str | None = None, on: Processor | None = None) -> None:
    """Have XLA know one, by its kind's name; the first time that takes a tenth of a second.

    on: what this processor can, or less, under another name.
    """
    name = name or kind.name
    with _LOCK:
        if name not in _MADE:
            made = _made(kind, on or processor())
            capsule = jax.ffi.pycapsule(made.get_function_address(HANDLER))
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
            _MADE[name] = made


def _job(kind: Kind | Attention, on: Processor) -> Job:
    return Attending(kind, on) if isinstance(kind, Attention) else Product(kind, way(kind, on))


def _made(kind: Kind | Attention, on: Processor) -> llvm.ExecutionEngine:
    features = _features()  # which has LLVM begin
    target = llvm.Target.from_triple(llvm.get_process_triple())
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=2, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    code = _kept(kind, on, lambda: _compiled(kind, on, machine))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _compiled(kind: Kind | Attention, on: Processor, machine: llvm.TargetMachine) -> bytes:
    module = ir.Module(kind.name)
    module.triple = llvm.get_process_triple()
    write(module, _job(kind, on))
    made: bytes = machine.emit_object(llvm.parse_assembly(str(module)))
    return made


def _kept(kind: Kind | Attention, on: Processor, make: Callable[[], bytes]) -> bytes:
    """From the folder that the environment names, or made, and kept there."""
    if not (place := os.environ.get(FOLDER)):
        return make()
    host = llvm.get_process_triple(), llvm.get_host_cpu_name(), _features()
    circumstances = repr([kind, on, host, llvm.llvm_version_info, _code()])
    file = Path(place) / f"{kind.name}-{kept_code.digest(circumstances.encode())}"
    with kept_code.told(log, f"{file} is made again"):
        if (found := kept_code.read(file, circumstances)) is not None:
            return found[0]
    made = make()
    with kept_code.told(log, f"{file} is not kept"):
        kept_code.write(file, circumstances, made)
    return made


@functools.cache
def _code() -> str:
    """A hash of the files that machine code comes from, and of llvmlite's version."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    version = metadata.version("llvmlite").encode()
    return kept_code.digest(b"".join([*(file.read_bytes() for file in files), version]))


@functools.cache
def processor() -> Processor:
    has = _flags().get
    arm = llvm.get_process_triple().startswith(("aarch64", "arm64"))
    wide = has("avx512bw", False)
    tiles = wide and has("amx-tile", False) and has("amx-bf16", False)
    return Processor(
        lanes=4 if arm else 16 if wide else 8,
        registers=32 if wide or arm else 16,
        pairs=wide and has("avx512bf16", False),
        tables=wide,
        tiles=tiles and _granted(),
    )


def _granted() -> bool:
    """Whether this process may use AMX's tiles: Linux has them be asked for, once."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ASK_FOR_STATE, _TILES) == 0


@functools.cache
def _flags() -> dict[str, bool]:
    """This processor's features, without those that XLA's flag keeps from XLA."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    found = dict(llvm.get_host_cpu_features())
    most = _FLAG.findall(os.environ.get("XLA_FLAGS", ""))  # of which XLA follows the last
    newest = most[-1].lower() if most else _NEWEST[0]
    without = tuple(takewhile(lambda family: not newest.startswith(family), _NEWEST))
    return {name: on and not name.startswith(without) for name, on in found.items()}


def _features() -> str:
    return ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(_flags().items()))
