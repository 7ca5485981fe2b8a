"""What an answer may say next, looked up in its own text: the prompt and the answer so far.

Where the newest three ids of a text stood before, what followed them then is a draft of what
follows now. An index remembers where each three stood last; it grows with the text, on the device,
so that a step of many tokens needs nothing of the host.
"""

from dataclasses import dataclass, field, replace
from numbers import Integral

import jax
import jax.numpy as jnp
from jax import Array

from qwen_jax.decoding.flat_params import Weights

DRAFT_TOKENS = 4  # where nobody says
MOST_DRAFT_TOKENS = 16
_GRAM = 3  # ids that must have stood before
_FACTORS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)  # odd, of a hash
_TRUST = 0.5  # the share of drafts that hold, lately, from which on they cost less than they save
_BEGINNING = 0.4  # of it, in a new text: one that holds is enough
_RATE = 0.25  # by which a draft moves it
_ROWS = {"cpu": 16}  # of a pass, up to which more cost little
_MANY_ROWS = 128
_FEW_ROWS = 4  # of them on a CPU in bfloat16; up to so many go through integer weights alike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Texts:
    """The ids of every slot's text, of B slots, and where to look in them."""

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


def most(weights: Weights, rows: int, wanted: int) -> int:
    """Tokens of a draft that a pass over so many rows verifies at little cost, of those wanted."""
    limit = _ROWS.get(weights.platform, _MANY_ROWS)
    if weights.platform == "cpu" and (weights.structure.quantised or weights.dtype != jnp.float32):
        limit = _FEW_ROWS
    return max(0, min(wanted, limit // rows - 1))


def wanted(weights: Weights, rows: int, draft_tokens: int | None) -> int:
    """Tokens of a draft: as many as were asked for, or where nobody says, what pays.

    On a CPU, one row of float32 is twice as fast as two, and integer weights gain nothing.
    """
    check(draft_tokens)
    if draft_tokens is None:
        on_cpu = weights.platform == "cpu"
        lone = rows == 1 and weights.dtype == jnp.float32
        return 0 if on_cpu and (lone or weights.structure.quantised) else DRAFT_TOKENS
    return int(draft_tokens)


def check(draft_tokens: int | None) -> None:
    """Raises ValueError for what nobody can have."""
    whole = isinstance(draft_tokens, Integral) and not isinstance(draft_tokens, bool)
    if draft_tokens is None or (whole and 0 <= draft_tokens <= MOST_DRAFT_TOKENS):
        return
    raise ValueError(f"got draft_tokens {draft_tokens!r}, wanted 0 to {MOST_DRAFT_TOKENS}")


def _before(ids: Array, slots: Array, places: Array) -> Array:
    """The three ids before places [...] in the texts of slots [...]."""
    at = places[..., None] - jnp.arange(_GRAM, 0, -1)
    return ids.at[slots[..., None], at].get(mode="clip", wrap_negative_indices=False)
