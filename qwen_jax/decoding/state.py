"""What lives between two calls of the decode functions, and what they give the host."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.decoding.logits import History, SamplingArrays
from qwen_jax.decoding.sampling import MAX_LOGPROBS
from qwen_jax.nn import sharding
from qwen_jax.nn.kv_cache import Cache, Store

_GRAM = 3  # ids that must have stood before
_FACTORS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)  # odd, of a hash
_TRUST = 0.4  # the share of drafts that hold, lately, from which on they cost less than they save
_BEGINNING = 0.4  # of it, in a new text: the first draft is worth a try
_RATE = 0.25  # by which a draft moves it


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
class Texts:
    """The ids of every slot's text, of B slots, and an index that grows with them.

    Where the newest three ids of a text stood before, what followed them then is a draft of what
    follows now. It is looked up on the device: a step of many tokens needs nothing of the host.
    """

    ids: Array  # [B L] int32
    index: Array  # [B 2^n] int32: by hash of three ids, the place behind them; 0: nowhere
    trust: Array  # [B] float32: share of the drafts that held, lately
    most: int = field(metadata={"static": True})  # tokens of a draft

    @staticmethod
    def empty(slots: int, length: int, most: int) -> "Texts":
        return Texts(
            ids=jnp.zeros((slots, length), jnp.int32),
            index=jnp.zeros((slots, 1 << max(4, (length - 1).bit_length())), jnp.int32),
            trust=jnp.full(slots, _BEGINNING, jnp.float32),
            most=most,
        )

    def begin(self, slots: Array, fresh: Array) -> "Texts":
        """Forget the texts of those of slots [R] that are fresh [R]."""
        slots = jnp.where(fresh, slots, len(self.ids))
        return replace(
            self,
            index=self.index.at[slots].set(0, mode="drop"),
            trust=self.trust.at[slots].set(_BEGINNING, mode="drop"),
        )

    def extend(self, slots: Array, tokens: Array, places: Array, real: Array) -> "Texts":
        """Add tokens [R T] of slots [R] at places [R T], of which some are real; all behind others.

        What stands before a place is known: it is among them, or was added earlier.
        """
        slots = slots[:, None]
        ids = self.ids.at[slots, jnp.where(real, places, self.ids.shape[1])].set(
            tokens, mode="drop"
        )
        known = real & (places >= _GRAM)
        where = jnp.where(known, self._hash(_before(ids, slots, places)), self.index.shape[1])
        return replace(self, ids=ids, index=self.index.at[slots, where].max(places, mode="drop"))

    def find(self, slots: Array, positions: Array, most: int) -> tuple[Array, Array]:
        """Drafts [R most] of what follows the newest ids, at positions [R]; and whether there are.

        Where a text repeats itself, the draft does so too.
        """
        newest = _before(self.ids, slots, positions + 1)
        place = self.index.at[slots, self._hash(newest)].get(mode="clip")
        same = jnp.all(_before(self.ids, slots, place) == newest, axis=-1)
        period = jnp.maximum(1, positions + 1 - place)[:, None]
        at = place[:, None] + jnp.arange(most) % period
        drafts = self.ids.at[slots[:, None], at].get(mode="clip")
        return drafts, same & (place > 0) & (positions + 1 >= _GRAM)

    def trusted(self, slots: Array) -> Array:
        """Whether the drafts of slots [R] have held often enough to be worth their cost."""
        return self.trust.at[slots].get(mode="clip") >= _TRUST

    def judge(self, slots: Array, share: Array, judged: Array) -> "Texts":
        """Learn which share [R] of a draft held, for the rows that were judged [R]."""
        old = self.trust.at[slots].get(mode="clip")
        slots = jnp.where(judged, slots, len(self.ids))
        new = old + (share - old) * _RATE
        return replace(self, trust=self.trust.at[slots].set(new, mode="drop"))

    def _hash(self, grams: Array) -> Array:
        """Three ids [... 3] -> a place of the index."""
        mixed = grams.astype(jnp.uint32) * jnp.asarray(_FACTORS, jnp.uint32)
        mixed = mixed[..., 0] ^ (mixed[..., 1] >> 3) ^ (mixed[..., 2] << 5)
        bits = (self.index.shape[1] - 1).bit_length()
        return (mixed * jnp.uint32(_FACTORS[0]) >> (32 - bits)).astype(jnp.int32)


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


def _before(ids: Array, slots: Array, places: Array) -> Array:
    """The three ids before places [...] in the texts of slots [...]."""
    at = places[..., None] - jnp.arange(_GRAM, 0, -1)
    return ids.at[slots[..., None], at].get(mode="clip", wrap_negative_indices=False)
