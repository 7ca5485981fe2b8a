"""The forms of attention over a cache: which can run where, and which one a call takes.

A form stores new keys and values and attends, `form(asked, key, value, table, ends)`;
kv_cache.store_and_attend is the one that XLA compiles, kernels and nn.cpu hold the others.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from qwen_jax.config import Config
from qwen_jax.nn import sharding
from qwen_jax.nn.cpu import attend as on_cpu
from qwen_jax.nn.projected import Projected

MOST = 16  # tokens a row that a kernel takes
_BLOCK = 64  # pages are cut into so many tokens
Form = Callable[..., tuple[Array, Any, Any]]


@dataclass(frozen=True)
class Backend:
    """A form, and the mesh whose devices run it, each for its slots and heads."""

    name: str = "xla"
    mesh: Mesh | None = None
    interpret: Any = False  # of a kernel, on a CPU

    @property
    def has_kernels(self) -> bool:
        return self.name in _KERNELS

    def kernel(self, length: int, table: Array | None, apart: bool) -> Form | None:
        """What takes a call of so many tokens a row; None: XLA stores, and `over` attends.

        apart: see Cache.select.
        """
        if self.name == "llvm":
            return on_cpu.store_and_attend
        split = table is not None and _split(self.mesh)
        if not self.has_kernels or not apart or length > MOST or split:
            return None
        return functools.partial(self._run, load(self.name))

    def over(self, table: Array | None) -> Callable[..., Array] | None:
        """What attends to many tokens, once they are stored; None: XLA's form does."""
        if not self.has_kernels or (table is not None and _split(self.mesh)):
            return None
        return functools.partial(self._attend, load_prefill(self.name))

    def _attend(
        self,
        attend: Callable[..., Array],
        query: Array,
        key: Any,
        value: Any,
        table: Array | None,
        positions: Array,
        ends: Array,
    ) -> Array:
        rows, tokens, stored = self._specs(query, key, table)
        places = None if table is None else rows
        ins = tokens, stored, stored, places, rows, rows
        run = self.split(functools.partial(attend, interpret=self.interpret), ins, tokens)
        pair = lambda store: (store.data, store.scale)
        y: Array = run(query, pair(key), pair(value), table, positions, ends)
        return y

    def split(self, run: Callable[..., Any], ins: Any, outs: Any) -> Callable[..., Any]:
        """`run` on each device's part of its arguments; on one device as it is."""
        if self.mesh is None:
            return run
        made: Callable[..., Any] = jax.shard_map(
            run, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False
        )
        return made

    def cut(self, axes: tuple[str | None, ...], counts: tuple[int, ...]) -> P:
        """How devices share an array with these logical axes; see sharding.spec."""
        if self.mesh is None:
            return P(*[None] * len(axes))
        return sharding.spec(self.mesh, axes, counts)

    def _specs(self, heads: Array, key: Any, table: Array | None) -> tuple[P, P, Any]:
        """How devices share rows, heads [B T K ...], and what is stored of them."""
        rows, kv = self.cut(("slot", "heads"), (len(heads), heads.shape[2]))
        data = P(rows if table is None else None, kv)
        return P(rows), P(rows, None, kv), (data, None if key.scale is None else data)

    def _run(
        self,
        decode: Form,
        asked: Projected,
        key: Any,
        value: Any,
        table: Array | None,
        ends: Array,
    ) -> tuple[Array, Any, Any]:
        rows, tokens, stored = self._specs(asked.qkv, key, table)
        each = lambda tree, spec: jax.tree.map(lambda _: spec, tree)
        norms = each((asked.q_norm, asked.k_norm), P())
        own = Projected(tokens, each(asked.where, rows), *norms)  # type: ignore[arg-type]
        ins, outs = (own, stored, stored, each(table, rows), rows), (tokens, stored, stored)
        run = self.split(functools.partial(decode, interpret=self.interpret), ins, outs)
        pair = lambda store: (store.data, store.scale)
        y, keys, values = run(asked, pair(key), pair(value), table, ends)
        put = lambda store, pair: dataclasses.replace(store, data=pair[0], scale=pair[1])
        return y, put(key, keys), put(value, values)


XLA = Backend()


def load(name: str) -> Form:
    """The kernel of that name; imported late, for each needs its part of jax."""
    if name == "triton":
        from qwen_jax.nn.kernels import triton

        return triton.decode
    from qwen_jax.nn.kernels import mosaic

    return mosaic.decode


def load_prefill(name: str) -> Callable[..., Array]:
    """The kernel of that name for pieces of texts."""
    if name == "triton":
        from qwen_jax.nn.kernels import triton_prefill

        return triton_prefill.attend
    from qwen_jax.nn.kernels import mosaic_prefill

    return mosaic_prefill.attend


# what each form runs on; the first that can is the one of a platform
PLATFORMS = {
    "triton": ("gpu",),
    "mosaic": ("tpu",),
    "llvm": ("cpu",),
    "xla": ("cpu", "gpu", "tpu"),
}
_KERNELS = ("triton", "mosaic")


def choose(
    name: str | None,
    platform: str,
    config: Config,
    page: int,
    mesh: Mesh | None = None,
    shared: bool = False,
    x: Any = jnp.bfloat16,
    stored: Any = None,
) -> Backend:
    """The form of that name, or the platform's best that can; ValueError if that one cannot.

    page: tokens of a page. shared: any row may have any page. x: type of queries, and stored, of
    keys and values, default the same.
    """
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
    types = jnp.dtype(x), jnp.dtype(stored or x)
    reasons = {
        form: _problem(form, platform, config, page, mesh, shared, types) for form in PLATFORMS
    }
    able = [form for form, reason in reasons.items() if reason is None]
    if name is None:
        name = able[0]
    if name not in PLATFORMS:
        raise ValueError(f"attention is {name!r}, wanted one of {', '.join(PLATFORMS)}")
    if name not in able:
        raise ValueError(f"attention {name} {reasons[name]}; here can run: {', '.join(able)}")
    return Backend(name, mesh)


def stored(backend: Backend, platform: str, x: Any) -> Any:
    """The type of keys and values where nobody asks for another: that of x, which loses nothing.

    XLA's form on a CPU would widen 16-bit ones again at every step.
    """
    return jnp.dtype(jnp.float32 if platform == "cpu" and backend.name == "xla" else x)


def _problem(
    name: str,
    platform: str,
    config: Config,
    page: int,
    mesh: Mesh | None,
    shared: bool,
    types: tuple[jnp.dtype, jnp.dtype],
) -> str | None:
    """Why this form cannot run, None if it can."""
    size, groups = config.head_dim, config.heads // config.kv_heads
    if platform not in PLATFORMS[name]:
        return f"runs on {' and '.join(PLATFORMS[name])}, this is {platform}"
    if name == "xla":
        return None
    if name == "llvm":
        if mesh is not None and mesh.size > 1:
            return "runs on one CPU, and these are several"
        return on_cpu.problem(*types, size)
    if page % _BLOCK:
        return f"takes pages of {_BLOCK} tokens or multiples of that, got {page}"
    if shared and _split(mesh):
        return "takes no pages that slots on several devices share"
    if name == "triton" and (size & (size - 1) or size < 16 or groups > 16):
        return f"takes heads of 16, 32, 64 ... in groups of up to 16, got {size} and {groups}"
    if name == "mosaic" and size % 128:
        return f"takes heads of 128 or multiples of that, got {size}"
    return None


def _split(mesh: Mesh | None) -> bool:
    """Whether different devices have different slots."""
    return mesh is not None and math.prod(mesh.shape[n] for n in sharding.RULES["slot"]) > 1
