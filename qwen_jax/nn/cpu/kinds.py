"""What there is in machine code, and whether it can be made here. Nothing here compiles."""

import functools
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass

SWITCH = "QWEN_JAX_CPU_PRODUCTS"  # "xla": XLA's everywhere
OUTPUTS = 4  # that are computed together
KEYS = 64  # that attention reads at once
_WANTED = ("avx2", "fma", "f16c")  # of x86; without the last, a product ends the process


@dataclass(frozen=True)
class Kind:
    """A product by what it is of."""

    x: str  # "float32" or "bfloat16"
    weights: str  # x's own type, "int8" or "int4"
    groups: bool = False  # of inputs, each with a scale; else an output has one
    zeros: bool = False
    short: bool = False  # int4 in groups that have no whole step of a processor's, but a half

    @property
    def name(self) -> str:
        marks = [mark for mark in ("groups", "zeros", "short") if getattr(self, mark)]
        return "_".join(["qwen_jax", self.x, self.weights, *marks])

    @property
    def integers(self) -> bool:
        return self.weights.startswith("int")


@dataclass(frozen=True)
class Attention:
    """Attention by what it is of."""

    x: str  # queries and what comes out: "float32" or "bfloat16"
    stored: str  # keys and values: "float32", "bfloat16" or "int8"
    size: int  # of a head

    @property
    def name(self) -> str:
        return f"qwen_jax_attention_{self.x}_{self.stored}_{self.size}"

    @property
    def inner(self) -> str:
        """What queries and keys are multiplied as."""
        return "float32" if "float32" in (self.x, self.stored) else "bfloat16"


@functools.cache
def available() -> bool:
    """Whether products can be made here. ValueError over a switch that says neither."""
    wanted = os.environ.get(SWITCH, "own")
    if wanted not in ("own", "xla"):
        raise ValueError(f"{SWITCH} is {wanted!r}, wanted own or xla")
    if wanted == "xla" or sys.platform == "win32" or importlib.util.find_spec("llvmlite") is None:
        return False
    machine = platform.machine().lower()
    return machine in ("aarch64", "arm64") or (machine in ("x86_64", "amd64") and _suits())


def _suits() -> bool:
    """Whether this x86 processor does in one instruction what every product does all the time."""
    from llvmlite import binding

    found = binding.get_host_cpu_features()
    return all(found.get(name, False) for name in _WANTED)
