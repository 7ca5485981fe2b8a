"""Passes of the network over the newest token of every row, and over drafts of what follows.

A draft is kept as far as it is what would have been drawn: an answer is the same with and without.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from qwen_jax.decoding.choice import sample_next
from qwen_jax.decoding.flat_params import Weights
from qwen_jax.decoding.state import Output, Rows, Texts, gather_logits
from qwen_jax.nn.kv_cache import Cache
from qwen_jax.nn.model import Qwen
from qwen_jax.program.limits import MAX_DRAFT_TOKENS

DRAFT_TOKENS = 4  # where nobody says
_ROWS = {"cpu": 16}  # of a pass, up to which more cost little
_MANY_ROWS = 128
_OWN_ROWS = 8  # on one CPU with products of our own
_FEW_ROWS = 4  # with XLA's in bfloat16; up to so many go through integer weights alike
_NOWHERE = 2**31 - 1  # a place past every output


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drafts:
    """What B rows may say next."""

    ids: Array  # [B most] int32
    found: Array  # [B] bool: whether there is a draft
    count: Array  # [B] int32: tokens of it that the answer has room for
    worth: Array  # [B] int32: tokens of it that are worth their cost


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Going:
    """Answers between two passes, of B rows."""

    cache: Cache
    rows: Rows
    texts: Texts | None
    output: Output
    filled: Array  # [B] int32: tokens in the output
    done: Array  # [] int32: passes
    drafts: Drafts | None = None  # for the next one


@dataclass(frozen=True)
class Passes:
    """What all passes of a call have in common."""

    model: Qwen
    mesh: Mesh | None
    slots: Array  # [B] whose texts the rows are
    table: Array | None  # [B blocks]
    allowed: Array | None  # [B W]
    drafting: Array  # [] bool: whether drafts may be made
    shadowed: bool  # one row needs a second beside it, which may as well be a draft

    def run(self, going: Going, count: Array, most: int) -> Going:
        """So many passes, or until no row is active; with drafts of `most` tokens at most.

        Loops, where one might branch: XLA would copy the cache for each branch.
        """
        more = lambda going: (going.done < count) & jnp.any(going.rows.active)
        if going.texts is None or most == 0:
            nothing = jnp.zeros((len(going.rows.active), 0), jnp.int32)
            one = lambda going: self._pass(going, nothing, jnp.zeros_like(going.filled))[0]
            return jax.lax.while_loop(more, one, going)
        least = int(self.shadowed)
        few, many = (functools.partial(self._verify, width) for width in (least, most))
        worth = lambda going: jnp.any(going.drafts.worth > least)

        def both(going: Going) -> Going:
            going = jax.lax.while_loop(lambda going: more(going) & ~worth(going), few, going)
            return jax.lax.while_loop(lambda going: more(going) & worth(going), many, going)

        return jax.lax.while_loop(more, both, self._drafted(going, most))

    def _drafted(self, going: Going, most: int) -> Going:
        """With drafts for the next pass."""
        assert going.texts is not None
        rows = going.rows
        ids, found = going.texts.find(self.slots, rows.positions, most)
        found &= rows.active & self.drafting
        count = jnp.where(found, jnp.minimum(most, rows.remaining - 1), 0)
        worth = jnp.where(going.texts.trusted(self.slots), count, 0)
        return replace(going, drafts=Drafts(ids, found, count, worth))

    def _verify(self, width: int, going: Going) -> Going:
        """A pass with drafts of `width` tokens, and what is learnt from it."""
        assert going.drafts is not None
        drafts, most = going.drafts, going.drafts.ids.shape[1]
        number = drafts.worth if width == most else jnp.minimum(drafts.count, width)
        after, said = self._pass(going, drafts.ids[:, :width], number)
        return self._drafted(_learnt(after, self.slots, said, drafts, number), most)

    def _pass(self, going: Going, drafts: Array, number: Array) -> tuple[Going, Array]:
        """A pass over rows with drafts [B T-1], of each row so many; and what was said [B T]."""
        rows, width = going.rows, drafts.shape[1] + 1
        tokens = jnp.concatenate([rows.tokens[:, None], drafts], axis=1)
        positions = rows.positions[:, None] + jnp.arange(width)
        ends = jnp.where(rows.active, rows.positions + 1 + number, 0)
        cache = going.cache.select(self.table, ends, apart=True)
        x, cache = self.model(tokens, positions, rows.prompt_lengths, cache)
        logits = self._logits(x)
        going = replace(going, cache=cache.select(None, None), done=going.done + 1)
        Carry = tuple[Array, Array, Going, Array]

        def one(carry: Carry) -> Carry:
            at, taking, going, said = carry
            going, new = _take(going, taking, logits(at), self.allowed, self.mesh)
            said = jax.lax.dynamic_update_slice_in_dim(said, new.tokens, at, axis=1)
            draft = jax.lax.dynamic_index_in_dim(tokens, at + 1, axis=1, keepdims=False)
            held = (at < number) & (draft == going.rows.tokens)
            return at + 1, taking & going.rows.active & held, going, said

        carry = (jnp.int32(0), rows.active, going, jnp.full(tokens.shape, -1, jnp.int32))
        if width == 1:
            _, _, going, said = one(carry)
        else:
            _, _, going, said = jax.lax.while_loop(lambda carry: jnp.any(carry[1]), one, carry)
        if going.texts is not None:
            texts = going.texts.extend(self.slots, said, positions + 1, said >= 0)
            going = replace(going, texts=texts)
        return going, said

    def _logits(self, x: Array) -> Callable[[Array], Array]:
        """Of hidden states [B T D], the logits [B V] at a place of T."""
        if x.shape[1] == 1:
            logits = gather_logits(self.model.logits(x[:, 0]), self.mesh)
            return lambda at: logits
        logits = gather_logits(self.model.logits(x), self.mesh)
        return lambda at: jax.lax.dynamic_index_in_dim(logits, at, axis=1, keepdims=False)


def _take(
    going: Going, taking: Array, logits: Array, allowed: Array | None, mesh: Mesh | None
) -> tuple[Going, Output]:
    """The next token of the rows that are taking one [B]."""
    rows = replace(going.rows, positions=going.rows.positions + taking, active=taking)
    rows, new = sample_next(rows, logits, allowed, mesh)
    active = jnp.where(taking, rows.active, going.rows.active)
    output = going.output.write(new, jnp.where(taking, going.filled, _NOWHERE))
    going = replace(
        going,
        rows=replace(rows, active=active),
        output=replace(output, active=active),
        filled=going.filled + taking,
    )
    return going, new


def _learnt(going: Going, slots: Array, said: Array, drafts: Drafts, number: Array) -> Going:
    """How far the drafts were right, also where none was made: its first token tells."""
    assert going.texts is not None
    assert going.output.drafts is not None
    tried, count = jnp.maximum(1, number), min(said.shape[1], drafts.ids.shape[1])
    same = (said[:, :count] == drafts.ids[:, :count]) & (jnp.arange(count) < tried[:, None])
    held = jnp.sum(same, axis=1, dtype=jnp.int32)
    made = (number > 0).astype(jnp.int32)
    told = jnp.stack([made, number, made * held], axis=1)
    output = replace(going.output, drafts=going.output.drafts + told)
    return replace(going, texts=going.texts.judge(slots, held / tried, drafts.found), output=output)


# --- how many ----------------------------------------------------------------------------------
def most(weights: Weights, rows: int, wanted: int) -> int:
    """Tokens of a draft that a pass over so many rows verifies at little cost, of those wanted."""
    limit = _ROWS.get(weights.platform, _MANY_ROWS)
    if weights.hosted:
        limit = _OWN_ROWS
    elif weights.platform == "cpu" and (
        weights.structure.quantised or weights.dtype != jnp.float32
    ):
        limit = _FEW_ROWS
    return max(0, min(wanted, limit // rows - 1))


def wanted(weights: Weights, rows: int, draft_tokens: int | None) -> int:
    """Tokens of a draft: as many as were asked for, or where nobody says, what pays.

    With XLA's products on a CPU, one row of float32 is twice as fast as two, and integer weights
    gain nothing.
    """
    check(draft_tokens)
    if draft_tokens is None:
        on_cpu = weights.platform == "cpu" and not weights.hosted
        lone = rows == 1 and weights.dtype == jnp.float32
        return 0 if on_cpu and (lone or weights.structure.quantised) else DRAFT_TOKENS
    return int(draft_tokens)


def check(draft_tokens: int | None) -> None:
    """Raises ValueError for what nobody can have."""
    whole = isinstance(draft_tokens, Integral) and not isinstance(draft_tokens, bool)
    if draft_tokens is None or (whole and 0 <= draft_tokens <= MAX_DRAFT_TOKENS):
        return
    raise ValueError(f"got draft_tokens {draft_tokens!r}, wanted 0 to {MAX_DRAFT_TOKENS}")
