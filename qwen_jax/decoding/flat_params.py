"""A model as a flat tuple of arrays: what jitted functions take."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.config import Config
from qwen_jax.decoding import executables
from qwen_jax.nn.cpu.kinds import available
from qwen_jax.nn.cpu.layers import all_hosted, can_loop, hosted, looped
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.quant import QuantLinear
from qwen_jax.nn.quant_matmul import COMPILER_OPTIONS
from qwen_jax.nn.sharding import gathered, mesh_of
from qwen_jax.nn.tree import named_layers

# Without the first, XLA's TPU compiler takes whole layers of the cache into on-chip memory to write
# one token there, and brings them back; without the second, weights are fetched in pieces of 4 MiB,
# each an operation.
_TPU_OPTIONS: dict[str, Any] = {
    "xla_tpu_msa_inefficient_use_to_copy_ratio": 0.8,
    "xla_tpu_sliced_prefetch_max_slices": 0,
}


@dataclass(frozen=True, eq=False)
class Structure:
    """What of a model is no array. Equal by identity alone, so a jitted call compares it fast."""

    tree: Any
    mesh: Mesh | None
    platform: str  # where the arrays are, or will be: "cpu", "gpu", "tpu"; "": not known

    @property
    def one_cpu(self) -> bool:
        """Whether one CPU has all of it."""
        return self.platform == "cpu" and (self.mesh is None or self.mesh.size == 1)

    @functools.cached_property
    def config(self) -> Config:
        return jax.tree.unflatten(self.tree, [None] * self.tree.num_leaves).config

    @functools.cached_property
    def quantised(self) -> bool:
        bare = jax.tree.unflatten(self.tree, [0] * self.tree.num_leaves)
        return bool(named_layers(bare, QuantLinear))


@functools.lru_cache(maxsize=64)
def structure(tree: Any, mesh: Mesh | None, platform: str) -> Structure:
    return Structure(tree, mesh, platform)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """A model flattened once: a call costs 0.4 ms with 700 flat arrays, 2 ms as 64 Modules."""

    leaves: tuple[Array, ...]
    structure: Structure = field(metadata={"static": True})

    @functools.cached_property
    def kinds(self) -> tuple[Any, ...]:
        """Of the leaves: what a program depends on."""
        return tuple(map(_placed_kind, self.leaves))

    def model(self) -> Qwen:
        """The network, for use in a program."""
        bare = jax.tree.unflatten(self.structure.tree, self.leaves)
        if not self.structure.one_cpu:
            return gathered(bare, self.structure.config, self.structure.mesh)
        return looped(hosted(bare)) if self.looped else hosted(bare)

    @property
    def hosted(self) -> bool:
        """Whether all products are nn.cpu's: one row has the bits that it has among others.

        XLA's CPU has another path for products of one row, whose sums differ in the last bit.
        """
        return self._on_cpu()[0]

    @property
    def looped(self) -> bool:
        """Whether a loop goes through the blocks, and a cache has all layers in one array."""
        return self._on_cpu()[1]

    def _on_cpu(self) -> tuple[bool, bool]:
        if not self.structure.one_cpu:
            return False, False
        return _on_cpu(self.structure, self.kinds, available())

    @property
    def dtype(self) -> Any:
        return jax.tree.unflatten(self.structure.tree, self.leaves).embed.dtype

    @property
    def platform(self) -> str:
        """Where the arrays are, or will be; "cpu" where nobody said."""
        return self.structure.platform or "cpu"


@functools.lru_cache(maxsize=64)
def _on_cpu(structure: Structure, kinds: tuple[Any, ...], own: bool) -> tuple[bool, bool]:
    """Of such weights: whether all products are nn.cpu's, which are registered, and can loop.

    own: whether there are any.
    """
    if not own:
        return False, False
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, *_ in kinds]
    made = hosted(jax.tree.unflatten(structure.tree, leaves))
    return all_hosted(made), can_loop(made)


_POSTPONED: ContextVar[list[Future[Any]] | None] = ContextVar("programs to prepare", default=None)
_MAKERS = threading.BoundedSemaphore(max(4, os.cpu_count() or 1))  # more would only take memory


@contextlib.contextmanager
def preparing(on: bool = True) -> Iterator[list[Future[Any]]]:
    """Programs that are called in here begin to be made and do not run; a state stays what it is.

    Gives what is done when they are: nothing where no programs are kept, or not `on`; they run.
    """
    made: list[Future[Any]] = []
    token = _POSTPONED.set(made if on else None)
    try:
        yield made
    finally:
        _POSTPONED.reset(token)


def postponed() -> list[Future[Any]] | None:
    """Where a program that is called puts what is done when it is made; None: it runs."""
    return None if executables.folder() is None else _POSTPONED.get()


class Program:
    """A jitted function of Weights and more; TPUs and integer weights want compiler options.

    Where `executables` has a folder, programs come from there: each is made once, and the next
    process neither traces nor compiles it.
    """

    def __init__(self, function: Callable[..., Any], **how: Any):
        self.plain = jax.jit(function, **how)
        self.quantised = jax.jit(function, compiler_options=COMPILER_OPTIONS, **how)
        self.on_tpu = jax.jit(function, compiler_options=_TPU_OPTIONS, **how)
        numbers, names = how.get("static_argnums", ()), how.get("static_argnames", ())
        self._numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers)
        self._names = (names,) if isinstance(names, str) else tuple(names)
        self._made: dict[Any, Future[Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, weights: Weights, *arguments: Any, **named: Any) -> Any:
        if (made := postponed()) is not None:
            made += self.prepare(weights, *arguments, **named)
            return arguments[0], None
        if executables.folder() is None:
            return self.of(weights)(weights, *arguments, **named)
        call, dynamic = self._begin(weights, arguments, named)
        return call.result()(*dynamic[0], **dynamic[1])

    def of(self, weights: Weights) -> Any:
        """The jitted function itself."""
        if weights.platform == "tpu":
            return self.on_tpu
        return self.quantised if weights.structure.quantised else self.plain

    def prepare(
        self, weights: Weights, *arguments: Any, after: Sequence[Future[Any]] = (), **named: Any
    ) -> list[Future[Any]]:
        """Have the program ready when it is called; of arrays the shapes are enough.

        after: programs that are wanted sooner; it leaves the processors to them. What comes back
        is done when the program is ready; empty where nothing is kept.
        """
        if executables.folder() is None:
            return []

        def start(make: Callable[[], None]) -> None:
            def run() -> None:
                wait(after)
                with _MAKERS:
                    make()

            threading.Thread(target=run).start()

        return [self._begin(weights, arguments, named, start)[0]]

    def _begin(
        self,
        weights: Weights,
        arguments: Any,
        named: Any,
        start: Callable[[Callable[[], None]], None] = lambda make: make(),
    ) -> tuple[Future[Any], Any]:
        """The program for these arguments, perhaps still in the making, and what it is called with.

        start: what sees to the making; default, this thread does.
        """
        positional = (weights, *arguments)
        dynamic = (
            tuple(x for i, x in enumerate(positional) if i not in self._numbers),
            {name: x for name, x in named.items() if name not in self._names},
        )
        leaves, tree = jax.tree.flatten((dynamic[0][1:], dynamic[1]))
        static = (
            tuple(positional[i] for i in self._numbers),
            tuple(named.get(name) for name in self._names),
        )
        mesh = weights.structure.mesh
        kinds = tuple(map(_kind if mesh is None else _placed_kind, leaves))
        key = (weights.structure, weights.kinds, static, tree, kinds, executables.context())
        with self._lock:
            if found := self._made.get(key):
                return found, dynamic
            made = self._made[key] = Future()

        def run() -> None:
            try:
                jitted = self.of(weights)
                weights._on_cpu()  # what was kept may call products that this registers
                what: list[Any] = [
                    weights.structure.config,
                    str(weights.structure.tree),
                    mesh,
                    *key[1:5],
                ]
                options = COMPILER_OPTIONS if weights.structure.quantised else None
                what.append([options, _TPU_OPTIONS, available()])
                lower = lambda: jitted.trace(*positional, **named).lower()
                name = jitted.__name__.strip("_")
                devices = [*mesh.devices.flat] if mesh else [*weights.leaves[0].sharding.device_set]
                made.set_result(executables.get(name, what, lower, dynamic, devices))
            except BaseException as error:
                del self._made[key]
                made.set_exception(error)

        start(run)
        return made, dynamic


def _kind(leaf: Any) -> tuple[Any, ...]:
    """What of an argument a program depends on."""
    return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)


def _placed_kind(leaf: Any) -> tuple[Any, ...]:
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding):  # one split has several spellings
        names = [*sharding.spec]
        while names and names[-1] is None:
            names.pop()
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*names))
    return *_kind(leaf), sharding


def flatten(params: Qwen | Weights) -> Weights:
    if isinstance(params, Weights):
        return params
    leaves, tree = jax.tree.flatten(params)
    if params.assets is not None:  # a tokenizer is no reason to compile again
        bare = jax.tree.unflatten(tree, leaves)
        bare.assets = None
        tree = jax.tree.structure(bare)
    return Weights(tuple(leaves), structure(tree, mesh_of(leaves), _platform(leaves[0])))


def _platform(leaf: Any) -> str:
    sharding = getattr(leaf, "sharding", None)  # what a caller traces, and NumPy's, have none
    return "" if sharding is None else str(next(iter(sharding.device_set)).platform)
