"""Attention in machine code of our own, against float64, for this processor and for lesser ones."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.nn import backends
from qwen_jax.nn.cpu import attend, registered
from qwen_jax.nn.cpu.kinds import Attention
from qwen_jax.nn.kv_cache import Store, quantize
from qwen_jax.nn.kv_cache import store_and_attend as xla
from qwen_jax.nn.projected import Projected
from qwen_jax.nn.rope import Where
from tests.qwen_jax.nn.cpu.test_products import LESSER
from tests.qwen_jax.nn.test_backends import LARGE

CLOSE = {"float32": 2e-6, "bfloat16": 1e-2}  # of the largest; one ends in bf16's few digits
TYPES = [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
TYPES += [("float32", "bfloat16"), ("float32", "int8"), ("bfloat16", "int8")]


@dataclass(frozen=True)
class Case:
    """What attention is given, as NumPy's arrays."""

    asked: Any  # [B T K G+2 H]
    stores: tuple[Store, Store]
    table: Any
    positions: Any
    ends: Any

    def run(self, form: Any) -> list[np.ndarray]:
        """y, keys and values, perhaps with their scales."""
        still = jnp.ones((*self.positions.shape, 1, self.asked.shape[-1] // 2)), jnp.zeros(1)
        where = Where(jnp.asarray(self.positions), still, None)
        given = Projected(jnp.asarray(self.asked), where), *self.stores
        y, *stores = jax.jit(form)(*given, self.table, jnp.asarray(self.ends))
        return [np.asarray(x.astype(jnp.float32)) for x in (y, *jax.tree.leaves(stores))]

    def rows(self, chosen: Any) -> "Case":
        table = None if self.table is None else self.table[chosen]
        own = self.asked[chosen], table, self.positions[chosen], self.ends[chosen]
        return Case(own[0], self.stores, *own[1:])


def case(
    x: str,
    stored: str,
    ends: list[int],
    length: int = 1,
    groups: int = 3,
    size: int = 64,
    page: int = 64,
    blocks: int = 3,
) -> Case:
    """Texts with so many tokens, of which the last `length` are new, in pages in any order."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape, np.float32)
    pages, heads = len(ends) * blocks + (blocks > 1), 2

    def store() -> Store:
        data = normal(pages, heads, page, size)
        return (
            Store(*quantize(jnp.asarray(data)))
            if stored == "int8"
            else Store(jnp.asarray(data, stored), None)
        )

    table = random.permutation(pages)[: len(ends) * blocks].reshape(len(ends), blocks)
    lasts = np.asarray(ends, np.int32)
    return Case(
        asked=jnp.asarray(normal(len(ends), length, heads, groups + 2, size), x),
        stores=(store(), store()),
        table=jnp.asarray(table, jnp.int32),
        positions=lasts[:, None] - length + np.arange(length, dtype=np.int32),
        ends=lasts,
    )


def wanted(given: Case, stores: list[np.ndarray]) -> np.ndarray:
    """In float64, of what was stored."""
    if len(stores) == 4:
        stores = [stores[at] * stores[at + 1][..., None] for at in (0, 2)]
    query = np.asarray(given.asked.astype(jnp.float32), np.float64)[..., :-2, :]
    y = np.zeros(query.shape)
    for row, own in enumerate(np.asarray(given.table)):
        key, value = (np.concatenate([*x[own].astype(np.float64)], axis=1) for x in stores)
        for n, position in enumerate(given.positions[row]):
            seen = slice(0, position + 1)
            scores = np.einsum("KGH,KSH->KGS", query[row, n], key[:, seen]) * key.shape[-1] ** -0.5
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            y[row, n] = np.einsum("KGS,KSH->KGH", weights, value[:, seen])
    return y


def made(x: str, stored: str, size: int, on: str) -> Any:
    """The form as JAX calls it, made for a processor."""
    if on == "here":
        return attend.store_and_attend
    if on == "bf16" and not registered.processor().pairs:
        pytest.skip("needs a processor that multiplies pairs of bf16")
    kind = Attention(x, stored, size)
    registered.register(kind, f"{kind.name}_{on}", LESSER[on])

    def form(*given: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Attention, "name", f"{kind.name}_{on}")
            patch.setattr(attend, "register", lambda *_: None)
            return attend.store_and_attend(*given)

    return form


@pytest.mark.parametrize("on", ["here", *LESSER])
@pytest.mark.parametrize(("x", "stored"), TYPES)
def test_is_right(x: str, stored: str, on: str) -> None:
    for given in (
        case(x, stored, [1, 64, 65, 170]),
        case(x, stored, [20, 150], length=19, groups=1, size=128),  # queries of several turns
    ):
        y, *stores = given.run(made(x, stored, given.asked.shape[-1], on))
        right = wanted(given, stores)
        assert np.abs(y - right).max() < CLOSE[x] * np.abs(right).max()
        theirs = given.run(xla)[1:]
        for own, other in zip(stores, theirs, strict=True):
            far = np.abs(own - other) > 1e-6 * np.abs(other)
            assert far.mean() < 1e-4  # codes halfway between two
            assert np.abs(own - other).max() <= (1 if far.any() else 1e-6)


@pytest.mark.parametrize(("x", "stored"), TYPES)
def test_bits_of_a_row_are_its_own(x: str, stored: str) -> None:
    """Whatever is beside it, however it was cut, and whatever was left in its pages."""
    ends = [5, 70, 170]
    whole = case(x, stored, ends, length=5)
    y, *stores = whole.run(attend.store_and_attend)
    for row in range(len(ends)):
        (alone, *_) = whole.rows(np.asarray([row])).run(attend.store_and_attend)
        assert (alone[0] == y[row]).all()
    before = whole
    for n in range(5):  # a token at a time
        one = Case(
            whole.asked[:, n : n + 1],
            before.stores,
            whole.table,
            whole.positions[:, n : n + 1],
            whole.ends - 4 + n,
        )
        alone, *left = one.run(attend.store_and_attend)
        assert (alone[:, 0] == y[:, n]).all()
        before = replace(whole, stores=_stores(whole, left))
    for own, other in zip(left, stores, strict=True):
        assert (own == other).all()
    key, value = (_spoilt(store, whole) for store in whole.stores)
    spoilt = replace(whole, stores=(key, value))
    assert (spoilt.run(attend.store_and_attend)[0] == y).all()


def _stores(given: Case, arrays: list[np.ndarray]) -> tuple[Store, Store]:
    leaves, tree = jax.tree.flatten(given.stores)
    return jax.tree.unflatten(
        tree, [jnp.asarray(x, old.dtype) for x, old in zip(arrays, leaves, strict=True)]
    )


def _spoilt(store: Store, given: Case) -> Store:
    """With NaN, or the highest numbers, wherever no text has a token."""
    real = np.zeros((len(store.data), store.data.shape[2]), bool)
    for row, end in enumerate(given.ends):
        for position in range(end):
            page, offset = divmod(position, real.shape[1])
            real[given.table[row, page], offset] = True
    keep = jnp.asarray(real)[:, None, :]
    rest = 127 if store.data.dtype == jnp.int8 else jnp.nan
    scale = None if store.scale is None else jnp.where(keep, store.scale, jnp.nan)
    return Store(jnp.where(keep[..., None], store.data, rest), scale)


def test_a_slot_with_memory_of_its_own() -> None:
    """One page of any length; what has no room there is not stored."""
    given = case("float32", "float32", [37, 20, 1], length=1, page=37, blocks=1)
    given = replace(given, table=None, ends=np.asarray([37, 20, 0], np.int32))
    own, other = given.run(attend.store_and_attend), given.run(xla)
    for mine, theirs in zip(own[1:], other[1:], strict=True):
        assert (mine == theirs).all()
    np.testing.assert_allclose(own[0][:2], other[0][:2], rtol=1e-5, atol=1e-6)
    assert (own[0][2] == 0).all()  # there is nothing to see
    full = replace(given, positions=given.positions + 20, ends=given.ends + 20)
    stored = (full.run(form)[1:] for form in (attend.store_and_attend, xla))
    for mine, theirs in zip(*stored, strict=True):
        assert (mine == theirs).all()


def test_extreme_scores() -> None:
    """A softmax of numbers far apart, and of equal ones."""
    given = case("float32", "float32", [130, 130], groups=1)
    asked = given.asked.at[0].multiply(1e4).at[1].multiply(0)
    y, *stores = replace(given, asked=asked).run(attend.store_and_attend)
    right = wanted(replace(given, asked=asked), stores)
    np.testing.assert_allclose(y, right, rtol=1e-5, atol=1e-6)


def test_what_is_no_number_shows() -> None:
    given = case("float32", "float32", [130, 130], groups=1)
    y, *_ = replace(given, asked=given.asked.at[0].set(jnp.nan)).run(attend.store_and_attend)
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


def test_what_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = lambda **how: backends.choose("llvm", "cpu", LARGE, 64, **how)
    assert choose(x="bfloat16", stored="int8").name == "llvm"
    with pytest.raises(ValueError, match=r"takes float32 or bfloat16 over .*, got float16 over"):
        choose(x="float16")
    with pytest.raises(ValueError, match=r"heads of multiples of .* here, got 20"):
        backends.choose("llvm", "cpu", replace(LARGE, head_dim=20), 64)
    monkeypatch.setattr(attend, "available", lambda: False)
    with pytest.raises(ValueError, match="needs llvmlite"):
        choose()


def test_the_type_of_keys_and_values() -> None:
    of = lambda name, platform, x: (
        jnp.dtype(
            backends.stored(backends.choose(name, platform, LARGE, 64, x=x), platform, x)
        ).name
    )
    assert of(None, "cpu", "bfloat16") == of("xla", "gpu", "bfloat16") == "bfloat16"
    assert of("xla", "cpu", "bfloat16") == of(None, "cpu", "float32") == "float32"
    assert of(None, "cpu", "float16") == "float32"  # which only XLA's form takes
