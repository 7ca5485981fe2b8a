"""Gradients of kernels by products made for this CPU, beside XLA's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.nn.cpu import registered
from qwen_jax.nn.model import Linear
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.nn.sums import outer
from train.nn import on_cpu


def arrays(rows: int, out: int, inputs: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    g, x = (jnp.asarray(random.normal(size=(rows, n)), jnp.bfloat16) for n in (out, inputs))
    return g, x


@pytest.mark.parametrize(("rows", "out", "inputs"), [(64, 36, 132), (50, 4, 8), (1, 5, 7)])
def test_outer_is_right(rows: int, out: int, inputs: int) -> None:
    """Rows that fill no step of a product, and shapes that it does not take, too."""
    g, x = arrays(rows, out, inputs)
    wanted = np.asarray(g, np.float64).T @ np.asarray(x, np.float64)
    found = jax.jit(on_cpu._turned)(g, x)
    assert found.dtype == jnp.float32
    assert np.abs(found - wanted).max() < 2e-6 * np.abs(wanted).max()


def test_a_layer_computes_its_kernels_gradient_so() -> None:
    _, x = arrays(64, 36, 132)
    seen: list[Any] = []

    def watched(g: Any, x: Any) -> Any:
        seen.append((g.shape, x.shape))
        return outer(g, x)

    layer = Linear(jnp.ones((36, 132), jnp.bfloat16), jnp.ones(36, jnp.bfloat16))
    changed = on_cpu.with_outer({"layer": layer}, watched)["layer"]
    np.testing.assert_array_equal(changed.float32(x), layer.float32(x))
    theirs = jax.grad(lambda layer: jnp.sum(layer.float32(x)))(layer)
    ours = jax.grad(lambda layer: jnp.sum(layer.float32(x)))(changed)
    assert seen == [((64, 36), (64, 132))]
    np.testing.assert_array_equal(ours.kernel, theirs.kernel)
    np.testing.assert_array_equal(ours.bias, theirs.bias)


def test_a_step_for_another_device_has_none_of_it() -> None:
    traced = jax.jit(on_cpu._where_a_cpu_runs).trace(*arrays(64, 36, 132))
    made = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")}
    assert "qwen_jax_bfloat16_bfloat16" in made["cpu"]
    assert "custom_call" not in made["cuda"]


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    has_bf16 = registered.processor().tiles or registered.processor().pairs
    assert (on_cpu.outer_for(jnp.bfloat16, None) is on_cpu._where_a_cpu_runs) == has_bf16
    assert on_cpu.outer_for(jnp.float32, None) is outer  # XLA's is as fast
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    assert on_cpu.outer_for(jnp.bfloat16, mesh) is outer
    monkeypatch.setattr(on_cpu, "available", lambda: False)
    assert on_cpu.outer_for(jnp.bfloat16, None) is outer
