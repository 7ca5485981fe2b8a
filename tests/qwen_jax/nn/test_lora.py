"""One adapted layer: y = (W + scale * B A) x + bias, wherever in W the adapter's rows belong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from qwen_jax.config import Config
from qwen_jax.nn.lora import Delta, Deltas, LoraLinear, Rows, _bits, dropout, fuse, spread
from qwen_jax.nn.model import Linear, init
from qwen_jax.nn.tree import map_linears, named_leaves
from tests.qwen_jax.networks import QWEN2, distance

OUT, IN, RANK, SCALE = 24, 10, 3, 0.7
PARTS = [Rows(2, 0, 8), Rows(2, 8, 10), Rows(2, 10, 12)]  # of two runs of 12 rows


def draw(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def delta(rows: Rows | None, seed: int, dtype: Any = jnp.float32) -> Delta:
    count = OUT if rows is None else rows.runs * (rows.stop - rows.start)
    a, b = draw(RANK, IN, seed=seed, dtype=dtype), draw(count, RANK, seed=seed, dtype=dtype)
    return Delta(a, b, None, rows, SCALE, 0.5)


def change(delta: Delta) -> np.ndarray:
    """What a delta adds to the kernel, in float64, row by row."""
    product = SCALE * np.asarray(delta.b, np.float64) @ np.asarray(delta.a, np.float64)
    if delta.rows is None:
        return product
    made, rows = np.zeros((OUT, IN)), iter(product)
    for run in range(delta.rows.runs):
        for row in range(delta.rows.start, delta.rows.stop):
            made[run * OUT // delta.rows.runs + row] = next(rows)
    return made


@pytest.mark.parametrize("parts", [[None], PARTS, PARTS[1:2]], ids=["whole", "all", "one"])
def test_layer(parts: list[Any]) -> None:
    base = Linear(draw(OUT, IN), draw(OUT, seed=9))
    layer = LoraLinear(base, tuple(delta(rows, seed) for seed, rows in enumerate(parts)))
    kernel = np.asarray(base.kernel, np.float64) + sum(map(change, layer.deltas))
    x = draw(2, 5, IN)
    wanted = np.asarray(x, np.float64) @ kernel.T + np.asarray(base.bias)
    assert distance(layer(x), wanted) < 1e-6
    assert distance(layer.fused()(x), wanted) < 1e-6
    assert distance(layer.fused().kernel, kernel) < 1e-6


def test_no_bias() -> None:
    layer = LoraLinear(Linear(draw(OUT, IN), None), (delta(None, 1),))
    assert layer.fused().bias is None


def test_fused_in_bfloat16_is_rounded_once() -> None:
    base = Linear(draw(OUT, IN, dtype=jnp.bfloat16), None)
    layer = LoraLinear(base, tuple(delta(rows, 3, jnp.bfloat16) for rows in PARTS))
    exact = np.asarray(base.kernel, np.float64) + sum(map(change, layer.deltas))
    made = layer.fused().kernel
    assert made.dtype == jnp.bfloat16
    np.testing.assert_array_equal(made, exact.astype(np.float32).astype(jnp.bfloat16))


def test_bfloat16_input() -> None:
    """The sums are float32; only the result is rounded to the input's type."""
    layer = LoraLinear(Linear(draw(OUT, IN), None), (delta(None, 1),))
    x = draw(4, IN, dtype=jnp.bfloat16)
    assert layer.float32(x).dtype == jnp.float32
    assert layer(x).dtype == jnp.bfloat16
    assert distance(layer(x), layer.fused()(x)) < 2e-2


def test_each_row_its_own() -> None:
    """Rows beside each other follow one adapter, another, or none; what others do is no matter."""
    base = Linear(draw(OUT, IN), draw(OUT, seed=9))
    one, two = delta(PARTS[1], 1), delta(PARTS[1], 2)
    broken = np.full((2, IN), np.inf, np.float32)  # a third, of rank 2
    scales = np.zeros((4, 2 * RANK + 2))
    scales[1, :RANK], scales[2, RANK : 2 * RANK], scales[3, -2:] = SCALE, SCALE, 1.0
    several = Deltas(
        a=jnp.concatenate([one.a, two.a, broken]),
        b=jnp.concatenate([one.b, two.b, draw(len(one.b), 2)], axis=1),
        scales=jnp.asarray(scales, jnp.float32),
        chosen=jnp.array([2, 0, 1, 2]),
        rows=PARTS[1],
    )
    x = draw(4, 5, IN)
    got = LoraLinear(base, (several,))(x)
    for row, deltas in enumerate([(two,), (), (one,), (two,)]):
        assert distance(got[row], LoraLinear(base, deltas)(x[row])) < 1e-6


def test_spread() -> None:
    y = jnp.arange(1.0, 5.0)
    np.testing.assert_array_equal(spread(y, Rows(2, 1, 3), 8), [0, 1, 2, 0, 0, 3, 4, 0])
    np.testing.assert_array_equal(spread(y, None, 4), y)


def test_map_linears_and_fuse() -> None:
    params = init(Config.from_hf(QWEN2 | {"num_hidden_layers": 2}), jax.random.key(0))
    names = []

    def note(name: str, layer: Linear) -> Linear:
        names.append(name)
        return layer

    map_linears(note, params)
    layers = ["attn.out", "attn.qkv", "mlp.down", "mlp.gate", "mlp.up"]
    assert sorted(names) == [f"blocks.{i}.{layer}" for i in (0, 1) for layer in layers]

    def wrap(name: str, layer: Linear) -> LoraLinear | Linear:
        if name != "blocks.1.mlp.up":
            return layer
        out, width = layer.kernel.shape
        return LoraLinear(layer, (Delta(draw(2, width), draw(out, 2), None, None, 1.0, 0.0),))

    before, after = named_leaves(params), named_leaves(fuse(map_linears(wrap, params)))
    assert before.keys() == after.keys()
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["blocks.1.mlp.up.kernel"]


def test_what_is_dropped_is_random() -> None:
    """As often as asked, whatever is dropped beside it, before it, or by another key."""
    keys = jax.random.split(jax.random.key(0), 16)
    for rate in (0.05, 0.3, 0.9):
        kept = np.asarray(dropout(jnp.ones((16, 64, 256)), rate, keys))
        np.testing.assert_allclose(np.unique(kept), [0, 1 / (1 - rate)], rtol=1e-6)
        gone, variance = (kept == 0) - rate, rate * (1 - rate)
        assert abs(gone.mean()) < 5 * (variance / gone.size) ** 0.5
        assert np.abs(gone.mean(axis=(1, 2))).max() < 5 * (variance / gone[0].size) ** 0.5
        for axis in range(3):  # keys, tokens, numbers of one
            beside = np.roll(gone, 1, axis)
            assert abs((gone * beside).mean()) < 5 * variance * gone.size**-0.5
    bits = np.asarray(jax.vmap(lambda key: _bits(key, (4096,)))(keys))
    each = np.unpackbits(bits.view(np.uint8).reshape(16, 4096, 4), axis=-1) - 0.5
    assert np.abs(each.mean(axis=(0, 1))).max() < 5 * 0.5 * (16 * 4096) ** -0.5
    together = np.einsum("KNi,KNj->ij", each, each)[~np.eye(32, dtype=bool)]
    assert np.abs(together).max() < 5 * 0.25 * (16 * 4096) ** 0.5
    assert len(np.unique(bits)) > 0.9999 * bits.size
