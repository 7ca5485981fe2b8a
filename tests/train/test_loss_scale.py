"""float16: the scale's rule, the steps it skips, and the curve of float32 behind them."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.data.examples import IGNORED
from qwen_jax.nn.quant import quantize
from qwen_jax.nn.sharding import make_mesh, shardings
from qwen_jax.nn.tree import map_linears, named_leaves
from tests.qwen_jax.networks import QWEN2, assemble
from tests.reference import random_checkpoint
from tests.train.networks import adapter_places, batch, losses, random_samples, run, with_adapters
from train.loss_scale import FLOOR, LossScale
from train.nn.network import stack
from train.step import Recipe, Trainer, TrainState

RECIPE = Recipe(steps=9, learning_rate=3e-3, warmup=0, remat="none", clip=0.5)
HF = QWEN2 | {"vocab_size": 128, "intermediate_size": 64}
ROWS = batch(random_samples([9, 5, 12, 3] * 4, 128), [[n] for n in range(16)], 12, parts=2)
TOO_MUCH = 2.0**21  # two halvings below it the gradients fit


def trainer(method: str, dtype: Any, mesh: Any = None) -> Trainer:
    params = assemble(HF, random_checkpoint(HF, 1))
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    if mesh is not None:
        params = jax.device_put(params, shardings(params.config, mesh))
    if method == "qlora":
        params = map_linears(lambda _, layer: quantize(layer, 4, 16, False), params)
    if method != "full":
        params = with_adapters(params)
    if mesh is not None:
        params = jax.device_put(params, adapter_places(params, mesh))
    params = stack(params)
    names = [n for n in named_leaves(params) if method == "full" or ".deltas." in n]
    return Trainer(params, names, RECIPE, dtype)


def started(network: Trainer, scale: float, updates: int = 0) -> TrainState:
    state = network.start()
    made = LossScale(jnp.float32(scale), jnp.int32(updates))
    return dataclasses.replace(state, loss_scale=jax.device_put(made, state.step.sharding))


def pair(scale: LossScale | None) -> tuple[float, int]:
    assert scale is not None
    return float(scale.value), int(scale.updates)


def test_the_rule_of_gradscaler() -> None:
    """What torch's own (2.13, _amp_update_scale_, its defaults) makes of five overflows."""
    overflows = jnp.zeros(8200, bool).at[jnp.array([0, 1, 700, 705, 4000])].set(True)
    step = lambda scale, overflow: (scale.after(~overflow), scale.value)
    _, seen = jax.lax.scan(step, LossScale.start(), overflows)
    runs = [(int(scale), len([*steps])) for scale, steps in itertools.groupby(seen.tolist())]
    assert runs == [
        (65536, 1), (32768, 1), (16384, 699), (8192, 5), (4096, 2000), (8192, 1295), (4096, 2000),
        (8192, 2000), (16384, 199),
    ]  # fmt: skip


def test_the_ends_of_the_scale() -> None:
    least = LossScale(jnp.float32(FLOOR), jnp.int32(5)).after(jnp.bool(False))
    assert pair(least) == (1, 0)
    most = LossScale(jnp.float32(2.0**127), jnp.int32(1999)).after(jnp.bool(True))
    assert pair(most) == (2.0**127, 0)


def adamw(
    trained: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """NumPy's, constant rate, weights clipped and decayed as RECIPE says."""
    first = {name: np.zeros_like(x) for name, x in trained.items()}
    second = dict(first)
    for count, found in enumerate(gradients, 1):
        norm = np.sqrt(sum((g**2).sum() for g in found.values()))
        for name, g in found.items():
            g = g * min(1, RECIPE.clip / norm)
            first[name] = RECIPE.beta1 * first[name] + (1 - RECIPE.beta1) * g
            second[name] = RECIPE.beta2 * second[name] + (1 - RECIPE.beta2) * g**2
            mean = first[name] / (1 - RECIPE.beta1**count)
            change = mean / (np.sqrt(second[name] / (1 - RECIPE.beta2**count)) + RECIPE.epsilon)
            decay = 0.0 if name.endswith((".bias", ".scale")) else RECIPE.weight_decay
            rate = RECIPE.learning_rate * 0.5 * (1 + np.cos(np.pi * (count - 1) / RECIPE.steps))
            trained = trained | {name: trained[name] - rate * (change + decay * trained[name])}
    return trained


def test_steps_are_numpys_without_those_that_overflow() -> None:
    """Gradients of float32; two steps are skipped, and move neither moments nor the rate."""
    network, exact = trainer("full", jnp.float16), trainer("full", jnp.float32)
    state, find = started(network, TOO_MUCH, updates=7), jax.jit(jax.grad(exact._loss))
    wanted = {name: np.array(x, np.float64) for name, x in state.trained.items()}
    count = int((ROWS.targets != IGNORED).sum())
    gradients: list[dict[str, np.ndarray]] = []
    for number in range(5):
        before = jax.tree.map(np.array, (state.trained, state.optimizer))
        parts = [find(state.trained, {}, jax.tree.map(lambda x: x[n], ROWS)) for n in (0, 1)]  # noqa: B023
        state, metrics = network.step(state, ROWS)
        assert metrics.loss_scale == TOO_MUCH / 2 ** min(number, 2)
        assert np.isfinite(metrics.loss)
        if number < 2:
            assert (int(metrics.skipped), int(state.step)) == (number + 1, number + 1)
            jax.tree.map(np.testing.assert_array_equal, (state.trained, state.optimizer), before)
            continue
        assert int(metrics.skipped) == 0
        rate = RECIPE.learning_rate * 0.5 * (1 + np.cos(np.pi * len(gradients) / RECIPE.steps))
        assert metrics.learning_rate == pytest.approx(rate)
        total = {n: np.asarray(parts[0][n] + parts[1][n], np.float64) / count for n in wanted}
        norm = np.sqrt(sum((g**2).sum() for g in total.values()))
        assert metrics.gradient_norm == pytest.approx(norm, rel=5e-3)
        gradients.append(total)
    assert pair(state.loss_scale) == (TOO_MUCH / 4, 3)
    for name, x in adamw(wanted, gradients).items():
        off = np.abs(state.trained[name] - x).mean()
        noise = 0.05 if name.endswith("qkv.bias") else 0.005  # keys' biases have no true gradient
        assert off < noise * np.abs(x - wanted[name]).mean(), name


@pytest.mark.parametrize(("method", "sizes"), [("lora", (2, 1, 4)), ("qlora", None)])
def test_the_curve_of_float32(method: str, sizes: tuple[int, int, int] | None) -> None:
    wanted = losses(run(trainer(method, jnp.float32), [ROWS] * 6)[1])
    mesh = None if sizes is None else make_mesh(*sizes)
    state, found = run(trainer(method, jnp.float16, mesh), [ROWS] * 6)
    np.testing.assert_allclose(losses(found), wanted, rtol=3e-3)
    assert pair(state.loss_scale) == (65536, 6)
    assert wanted[-1] < 0.99 * wanted[0]
