"""What lives between two calls of the decode functions, and what they give the host."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.decoding.drafts import Texts
from qwen_jax.decoding.logits import History, SamplingArrays
from qwen_jax.decoding.sampling import MAX_LOGPROBS
from qwen_jax.nn import sharding
from qwen_jax.nn.kv_cache import Cache, Store


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The requests in some slots, B of them, but for their keys and values."""

    tokens: Array  # [B] int32: the newest token, not yet in the cache
    positions: Array  # [B] int32: where it goes
    prompt_lengths: Array  # [B] int32: fixes dynamic NTK's alpha while a request lasts
    remaining: Array  # [B] int32: tokens the request may still get
    active: Array  # [B] bool: has a token to continue from
    adapters: Array  # [B] int32: the number of the request's adapter, 0 for none
    history: History
    settings: SamplingArrays

    def take(self, slots: Array | None) -> "Rows":
        """The rows of these slots [R], all for None; one for a slot that is not there is idle."""
        if slots is None:
            return self
        rows = jax.tree.map(lambda x: x.at[slots].get(mode="clip"), self)
        return replace(rows, active=rows.active & (slots < len(self.active)))

    def put(self, slots: Array | None, rows: "Rows") -> "Rows":
        """These with the rows of some slots, of those that are there, in place."""
        if slots is None:
            return rows
        return jax.tree.map(lambda x, part: x.at[slots].set(part, mode="drop"), self, rows)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All slots between two calls."""

    cache: Cache
    rows: Rows
    texts: Texts | None = None  # where drafts are looked up; None: nowhere


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """New tokens of every slot, in order; places a slot did not fill hold -1 in `tokens`."""

    tokens: Array  # [B n] int32
    logprobs: Array  # [B n] float32, of the model's own distribution before any processing
    top_tokens: Array  # [B n MAX_LOGPROBS] int32, best first; zeros unless a request asks
    top_logprobs: Array  # [B n MAX_LOGPROBS] float32
    active: Array  # [B] bool: which slots go on from here
    drafts: Array | None = None  # [B 3] int32: drafts verified, their tokens, and those that held

    @staticmethod
    def empty(slots: int, count: int, active: Array) -> "Output":
        return Output(
            tokens=jnp.full((slots, count), -1, jnp.int32),
            logprobs=jnp.zeros((slots, count), jnp.float32),
            top_tokens=jnp.zeros((slots, count, MAX_LOGPROBS), jnp.int32),
            top_logprobs=jnp.zeros((slots, count, MAX_LOGPROBS), jnp.float32),
            active=active,
        )

    def write(self, new: "Output", at: Array) -> "Output":
        """This output with the one column of `new` at places [B]; past the last nothing is kept."""
        rows = jnp.arange(len(at))
        put = lambda x, part: x.at[rows, at].set(part[:, 0], mode="drop")
        return Output(
            tokens=put(self.tokens, new.tokens),
            logprobs=put(self.logprobs, new.logprobs),
            top_tokens=put(self.top_tokens, new.top_tokens),
            top_logprobs=put(self.top_logprobs, new.top_logprobs),
            active=new.active,
            drafts=self.drafts,
        )


def state_shardings(state: State, mesh: Mesh) -> State:
    """A sharding for every array of a state: slots over data, heads over tensor.

    Pages that any slot may have are whole on every part of data.
    """

    def sharding_of(array: Any, *axes: str | None) -> NamedSharding:
        axes += (None,) * (array.ndim - len(axes))
        return NamedSharding(mesh, sharding.spec(mesh, axes, array.shape))

    stores = lambda node: isinstance(node, Store)
    pages = None if state.cache.shared else "slot"
    return jax.tree.map(
        lambda node: (
            jax.tree.map(lambda x: sharding_of(x, pages, "heads"), node)
            if stores(node)
            else sharding_of(node, "slot")
        ),
        state,
        is_leaf=stores,
    )


def constrain(state: State, mesh: Mesh | None) -> State:
    """Fix where a state's arrays lie, so that the next call finds them where it compiled them."""
    if mesh is None:
        return state
    return jax.tree.map(jax.lax.with_sharding_constraint, state, state_shardings(state, mesh))


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """On every device whole: what the host, or each of several hosts, will read."""
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole), tree)


def gather_logits(logits: Array, mesh: Mesh | None) -> Array:
    """Logits [... V] on every device, each of which computes its part of the vocabulary.

    Asked for replicated logits alone, XLA collects the head instead: 1.2 GB for every token.
    """
    if mesh is None:
        return logits
    axes = (*[None] * (logits.ndim - 1), "vocab")
    part = NamedSharding(mesh, sharding.spec(mesh, axes, logits.shape))
    return replicated(jax.lax.with_sharding_constraint(logits, part), mesh)
