from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.nn.sums import alike, matmul, row_sum

ROWS = (1, 2, 3, 4, 5, 8, 16, 17, 64)


@pytest.mark.parametrize(("out", "inputs"), [(192, 128), (128, 352), (512, 1024)])
@pytest.mark.parametrize(("dtype", "least"), [(jnp.float32, 2), (jnp.bfloat16, 1)])
def test_a_row_has_the_same_bits(dtype: Any, least: int, out: int, inputs: int) -> None:
    """However many there are, by whatever this processor multiplies with."""
    random = np.random.default_rng(inputs)
    x, kernel = (jnp.asarray(random.normal(size=(n, inputs)), dtype) for n in (max(ROWS), out))
    product = jax.jit(matmul)
    first = [np.asarray(product(x[:rows], kernel))[0] for rows in ROWS if rows >= least]
    for other in first[1:]:
        np.testing.assert_array_equal(other, first[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batched_products_are_alike(dtype: Any) -> None:
    """Those of attention, a few rows for each head."""
    random = np.random.default_rng(0)
    x, keys = (jnp.asarray(random.normal(size=(2, 4, 32, 64)), dtype) for _ in range(2))
    scores = jax.jit(lambda x: jnp.einsum("BKRH,BKSH->BKRS", x, keys))
    first = [np.asarray(scores(x[:, :, :n]))[:, :, 0] for n in ROWS if alike(dtype) <= n <= 32]
    for other in first[1:]:
        np.testing.assert_array_equal(other, first[0])


@pytest.mark.parametrize("size", [40, 300, 1280, 5000])
def test_a_sum_has_the_same_bits(size: int) -> None:
    x = jnp.asarray(np.random.default_rng(size).normal(size=(64, size)), jnp.float32)
    total = jax.jit(row_sum)
    for rows in (1, 2, 4, 8, 64):
        np.testing.assert_array_equal(np.asarray(total(x[:rows])), np.asarray(total(x))[:rows])
