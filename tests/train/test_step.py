"""A step of training: its gradients, its update, what stays as it is, where it runs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.config import Config
from qwen_jax.data.examples import IGNORED
from qwen_jax.nn.sharding import make_mesh, shardings
from qwen_jax.nn.tree import named_leaves
from qwen_jax.storage.hf_names import tensor_views
from tests.qwen_jax.networks import QWEN2, QWEN3, V1, assemble
from tests.reference import random_checkpoint, reference_logits
from tests.train.networks import (
    adapter_places,
    batch,
    losses,
    random_samples,
    run,
    trainer,
    with_adapters,
)
from train.nn import Remat
from train.nn.network import unstack
from train.step import Recipe

TWO = {"num_hidden_layers": 2}
FIRST = V1 | TWO | {"seq_length": 512}  # the long-text rules are off in training
FAMILIES = [FIRST, QWEN2 | TWO, QWEN3 | TWO]
LIVELY = Recipe(steps=20, learning_rate=3e-3, warmup=0.1, remat="none")


def reference_loss(
    hf: dict[str, Any], tensors: dict[str, np.ndarray], samples: list[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Mean over the targets, in float64 NumPy, each sample by itself."""
    total = count = 0
    for ids, labels in samples:
        logits = reference_logits(hf, tensors, ids.tolist())[:-1]
        scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        learnt = labels[1:] != IGNORED
        total -= scores[learnt, labels[1:][learnt]].sum()
        count += learnt.sum()
    return total / count


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("hf", FAMILIES, ids=["v1", "qwen2", "qwen3"])
def test_gradients_of_the_reference(hf: dict[str, Any], remat: Remat) -> None:
    """Each tensor's gradient along a random direction, against a difference of float64 losses."""
    tensors = random_checkpoint(hf, seed=1)
    samples = random_samples([11, 7, 14], 96)
    network = trainer(assemble(hf, tensors), Recipe(steps=1, learning_rate=0, remat=remat))
    rows = jax.tree.map(lambda x: x[0], batch(samples, [[0, 1], [2]], 24))
    find = jax.jit(jax.value_and_grad(network._loss))
    loss, gradient = find(network.start().trained, {}, rows)
    count = (rows.targets != IGNORED).sum()
    assert float(loss / count) == pytest.approx(reference_loss(hf, tensors, samples), rel=1e-5)
    leaves = named_leaves(unstack(network.params(gradient)))
    random = np.random.default_rng(0)
    for part in tensor_views(Config.from_hf(hf), hf["model_type"]):
        tensor, way = tensors[part.tensor].astype(np.float64), random.normal(size=part.shape)
        ends = [
            reference_loss(hf, tensors | {part.tensor: tensor + step * way}, samples)
            for step in (1e-4, -1e-4)
        ]
        got, way = part.views(np.asarray(leaves[part.leaf] / count), way)
        assert abs(np.vdot(got, way) - (ends[0] - ends[1]) / 2e-4) < 1e-4 * np.linalg.norm(got), (
            part.tensor
        )


def test_a_step_is_compiled_once() -> None:
    """Ahead of the first call, which finds it."""
    events = []
    listen: Any = lambda event, seconds, **_: events.append(event)
    network = trainer(assemble(QWEN2, random_checkpoint(QWEN2, 1)), LIVELY)
    state, rows = network.start(), batch(random_samples([9, 5], 96), [[0], [1]], 24)
    jax.monitoring.register_event_duration_secs_listener(listen)
    for _ in range(3):
        state, _ = network.step(state, rows)
    assert events.count("/jax/core/compile/backend_compile_duration") == 1


def test_packing_and_dividing_change_nothing() -> None:
    """The update is the same for rows packed or not, at once or one after another."""
    params = assemble(FIRST, random_checkpoint(FIRST, 1))
    samples = random_samples([9, 5, 12, 3, 8, 6, 10, 2], 96)
    single = [[n] for n in range(8)]
    ways = [(single, 1), (single, 4), (single, 8), ([[0, 1, 3], [2, 4], [5, 6], [7]], 2)]
    runs = [run(trainer(params, LIVELY), [batch(samples, way[0], 24, way[1])] * 2) for way in ways]
    (state, seen), *others = runs
    for other, metrics in others:
        np.testing.assert_allclose(losses(metrics), losses(seen), rtol=1e-6)
        assert metrics[0].targets == seen[0].targets
        assert metrics[0].tokens == 55
        for name, leaf in state.trained.items():
            np.testing.assert_allclose(other.trained[name], leaf, atol=5e-6, err_msg=name)


def test_dropout_is_drawn_per_row() -> None:
    """However rows are divided, the same numbers are dropped; another step drops others."""
    params = with_adapters(assemble(FIRST, random_checkpoint(FIRST, 1)), dropout=0.3)
    samples = random_samples([9] * 4, 96)
    still = Recipe(steps=9, learning_rate=0.0)
    curves = []
    for divided in (1, 2, 4):
        rows = batch(samples, [[0], [1], [2], [3]], 12, divided)
        curves.append(losses(run(trainer(params, still, adapters_only=True), [rows] * 3)[1]))
    np.testing.assert_allclose(curves[1:], [curves[0]] * 2, rtol=1e-6)
    assert len(set(curves[0])) == 3
    network = trainer(params, still, adapters_only=True)
    total, count = network.score(network.start(), rows)
    assert abs(float(total / count) - curves[0]).min() > 1e-4


def test_only_what_is_trained_changes() -> None:
    params = with_adapters(assemble(FIRST, random_checkpoint(FIRST, 1)))
    network = trainer(params, LIVELY, adapters_only=True)
    before = {name: np.array(leaf) for name, leaf in network.frozen.items()}
    first = {name: np.array(leaf) for name, leaf in network._trained.items()}
    state, seen = run(network, [batch(random_samples([12], 96), [[0]], 12)] * 20)
    assert losses(seen)[-1] < 0.9 * losses(seen)[0]
    assert state.trained.keys() == {n for n in network.names if ".deltas." in n}
    assert not any(np.array_equal(first[name], state.trained[name]) for name in first)
    for name, leaf in before.items():
        np.testing.assert_array_equal(network.frozen[name], leaf)


def test_a_step_without_a_finite_gradient_is_skipped() -> None:
    network = trainer(assemble(FIRST, random_checkpoint(FIRST, 1)), LIVELY)
    good = batch(random_samples([12], 96), [[0]], 12)
    state, _ = run(network, [good] * 2)
    ruined = dataclasses.replace(
        state, trained=state.trained | {"norm.scale": state.trained["norm.scale"] * jnp.inf}
    )
    kept = jax.tree.map(np.array, ruined)
    for times in (1, 2):
        ruined, metrics = network.step(ruined, good)
        assert int(metrics.skipped) == times
        assert not np.isfinite(metrics.loss)
    jax.tree.map(np.testing.assert_array_equal, ruined.trained, kept.trained)
    jax.tree.map(np.testing.assert_array_equal, ruined.optimizer, kept.optimizer)
    assert int(ruined.step) == 4
    mended = dataclasses.replace(
        ruined, trained=ruined.trained | {"norm.scale": jnp.ones(32, jnp.float32)}
    )
    _, metrics = network.step(mended, good)
    assert int(metrics.skipped) == 0


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "tensor": 4}], ids=str)
def test_meshes_give_the_curve_of_one_device(sizes: dict[str, int]) -> None:
    """Twenty steps of adapters with dropout, packed rows, two parts a step; 2 heads for 4."""
    hf = FIRST | {"vocab_size": 128, "intermediate_size": 128}
    hf |= {"num_attention_heads": 2, "kv_channels": 16}
    params = assemble(hf, random_checkpoint(hf, 1))
    samples = random_samples([9, 5, 12, 3] * 8, 128)
    rows = batch(samples, [[4 * i, 4 * i + 1] for i in range(8)] * 2, 16, parts=2)
    curve = losses(run(trainer(with_adapters(params, dropout=0.1), LIVELY, True), [rows] * 20)[1])
    mesh = make_mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes))
    params = jax.device_put(params, shardings(params.config, mesh))
    placed = with_adapters(params, dropout=0.1)
    network = trainer(jax.device_put(placed, adapter_places(placed, mesh)), LIVELY, True)
    _, seen = run(network, [rows] * 20)
    np.testing.assert_allclose(losses(seen), curve, rtol=1e-5)


RATES: dict[
    tuple[str, float], list[float]
] = {  # transformers' get_scheduler, 7 steps, of them 0 or 2 to warm up
    ("cosine", 0.0): [1, 0.950484, 0.811745, 0.61126, 0.38874, 0.188255, 0.049516, 0],
    ("cosine", 0.25): [0, 0.5, 1, 0.904508, 0.654508, 0.345492, 0.095492, 0],
    ("linear", 0.0): [1, 0.857143, 0.714286, 0.571429, 0.428571, 0.285714, 0.142857, 0],
    ("linear", 0.25): [0, 0.5, 1, 0.8, 0.6, 0.4, 0.2, 0],
    ("constant", 0.0): [1] * 8,
    ("constant", 0.25): [0, 0.5, 1, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize(("schedule", "warmup"), RATES)
def test_rates_of_transformers(schedule: str, warmup: float) -> None:
    """Steps are counted from 0: a warm-up begins at nothing, else the first is whole."""
    recipe = Recipe(steps=7, learning_rate=2.0, schedule=schedule, warmup=warmup)
    rates = [float(recipe.rate(jnp.int32(step))) / 2 for step in range(8)]
    np.testing.assert_allclose(rates, RATES[schedule, warmup], atol=1e-6)
