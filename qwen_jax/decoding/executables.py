"""Compiled programs in a folder of the user's: the next start neither traces nor compiles them.

A file is one executable, named by a hash of all that it depends on: the function and what it is
called with, this package's code, the versions of jax and what lies below it, the devices, flags
and settings. `files.kept_code` says which files are trusted, and how long they stay.
"""

import contextlib
import functools
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from qwen_jax.files import kept_code

FOLDER = "QWEN_JAX_PROGRAMS"  # the environment's name for it; without one nothing is kept
_FLAGS = ("XLA_", "JAX_", "LIBTPU_", "TPU_", "CUDA_", "NVIDIA_", "TF_")  # of the environment
_IDLE = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")  # that change no program

log = logging.getLogger("qwen_jax.executables")


def folder() -> Path | None:
    """Where programs are kept; None: nowhere."""
    name = os.environ.get(FOLDER)
    return Path(name) if name and jax.process_count() == 1 else None


def get(
    name: str, what: Any, make: Callable[[], Any], arguments: Any, devices: Sequence[Any]
) -> Any:
    """An executable from the folder, or one of what `make` lowers, which is then kept.

    what: all that a caller knows to matter, with a repr that tells it. arguments: what it will be
    called with, (positional, named), arrays or their shapes. devices: that it runs on, in order.
    """
    place = folder()
    assert place is not None
    device = [(d.id, d.platform, d.device_kind) for d in devices]
    circumstances = repr([name, what, device, _surroundings(), _settings()])
    file = place / f"{name}-{kept_code.digest(circumstances.encode())}"
    with kept_code.told(log, f"{file} is made again"), _timed("reading"):
        if (found := kept_code.read(file, circumstances)) is not None:
            content, described = found
            out_tree = jax.tree.structure(_restored(described, devices))
            in_tree = jax.tree.structure(arguments)
            return serialize_executable.deserialize_and_load(
                content, in_tree, out_tree, devices[0].client, devices
            )
    with _timed("tracing"):
        lowered = make()
    with _FRESH, _timed("compiling"):
        made = lowered.compile()
    with kept_code.told(log, f"{file} is not kept"), _timed("writing"):
        content, _, out_tree = serialize_executable.serialize(made)
        kept_code.write(file, circumstances, content, _described(out_tree))
    return made


_SPENT: dict[str, float] = {}


def spent() -> dict[str, float]:
    """Seconds of each kind of work on programs so far; threads that work at once count alone."""
    return {name: seconds for name, seconds in _SPENT.items() if seconds >= 0.005}


@contextlib.contextmanager
def _timed(name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        _SPENT[name] = _SPENT.get(name, 0.0) + time.monotonic() - began


class _Fresh:
    """While anybody is in it, nothing comes from JAX's own cache.

    What came from there can be run, but on a CPU not be written again: it lacks its functions.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = jax.config.values[_SWITCH]
                self._set(False)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(self._before)

    def _set(self, on: bool) -> None:
        jax.config.update(_SWITCH, on)
        compilation_cache.reset_cache()  # it remembers whether it was on


_SWITCH = "jax_enable_compilation_cache"
_FRESH = _Fresh()
_CONTEXT = "default_matmul_precision enable_x64 default_prng_impl numpy_dtype_promotion".split()


def context() -> tuple[Any, ...]:
    """JAX's settings that a caller may change for a while; the others stay as they were first."""
    return tuple(getattr(jax.config, f"jax_{name}") for name in _CONTEXT)


# --- what a program depends on ----------------------------------------------------------------
@functools.cache
def _surroundings() -> list[Any]:
    """Of every program of this process."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    code = _code(Path(__file__).parents[1])
    return [code, versions, sys.version, platform.machine(), _processor(), _backend()]


def _processor() -> list[str]:
    """What programs for a CPU are compiled for; a folder may be shared by machines."""
    file = Path("/proc/cpuinfo")
    first = file.read_text().split("\n\n")[0] if file.exists() else platform.processor()
    told = ("model", "flags", "Features", "CPU")
    return [line for line in first.splitlines() if line.startswith(told) or not file.exists()]


def _backend() -> list[Any]:
    backend = jax.devices()[0].client
    return [backend.platform, backend.platform_version, len(jax.devices())]


def _code(package: Path) -> str:
    """A hash of every file that a program may come from; a checkout's version says little."""
    files = [
        package / "config.py",
        *(f for r in ("nn", "decoding") for f in (package / r).rglob("*.py")),
    ]
    return kept_code.digest(b"".join(file.read_bytes() for file in sorted(files)))


def _settings() -> list[Any]:
    """JAX's settings as they are here and now, and what the environment tells its compilers."""
    values = {name: getattr(jax.config, name, value) for name, value in jax.config.values.items()}
    flags = {name: value for name, value in os.environ.items() if name.startswith(_FLAGS)}
    both = {**values, **flags}
    return sorted((name, repr(value)) for name, value in both.items() if name.lower() not in _IDLE)


# --- trees as JSON ----------------------------------------------------------------------------
def _described(tree: Any) -> Any:
    """A tree of tuples, lists, None and this package's dataclasses; a leaf is 0."""
    kind, static = tree.node_data() or (int, None)
    if kind in (int, type(None)):
        return 0 if kind is int else None
    return [
        kind.__module__,
        kind.__qualname__,
        [_plain(value) for value in static or ()],
        *map(_described, tree.children()),
    ]


def _plain(value: Any) -> Any:
    """A static value: a plain one, a mesh, or a dataclass of this package with such fields."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mesh):
        return {"mesh": value.axis_names, "shape": value.devices.shape}
    kind = type(value)
    if not is_dataclass(kind) or not kind.__module__.startswith("qwen_jax."):
        raise ValueError(f"a tree with {value!r:.99} cannot be described")
    values = {field.name: _plain(getattr(value, field.name)) for field in fields(kind)}
    return {"kind": [kind.__module__, kind.__qualname__], "fields": values}


def _restored(described: Any, devices: Sequence[Any]) -> Any:
    """A thing of the tree that was described; its types must have been imported already."""
    if isinstance(described, dict):
        if "mesh" in described:
            return Mesh(np.array(devices).reshape(described["shape"]), described["mesh"])
        values = {name: _restored(part, devices) for name, part in described["fields"].items()}
        return _ours(*described["kind"])(**values)
    if not isinstance(described, list):
        return described
    module, name, static, *parts = described
    children = [_restored(part, devices) for part in parts]
    if module == "builtins":
        return {"tuple": tuple, "list": list}[name](children)
    kind = _ours(module, name)
    given = {True: iter([_restored(value, devices) for value in static]), False: iter(children)}
    return kind(**{f.name: next(given[bool(f.metadata.get("static"))]) for f in fields(kind)})


def _ours(module: str, name: str) -> Any:
    if not module.startswith("qwen_jax."):
        raise ValueError(f"a tree with {module}.{name} is not of this package")
    return getattr(sys.modules[module], name)


_PLAIN = (int, float, str, type(None))
