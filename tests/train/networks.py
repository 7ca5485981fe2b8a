"""Batches and networks of the training tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qwen_jax.data.examples import IGNORED
from qwen_jax.nn.lora import Delta, LoraLinear
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.tree import map_linears, named_leaves
from train.nn.network import stack
from train.step import Batch, Metrics, Recipe, Trainer, TrainState, batch_sharding


def batch(
    samples: list[tuple[Any, Any]], rows: list[list[int]], length: int, parts: int = 1
) -> Batch:
    """A Batch whose rows hold the samples (tokens, labels) of those numbers; `parts` is its A."""
    fields = np.zeros((4, len(rows), length), np.int32)
    tokens, targets, positions, segments = fields
    targets[:] = IGNORED
    for row, numbers in enumerate(rows):
        start = 0
        for segment, number in enumerate(numbers, 1):
            ids, labels = map(np.asarray, samples[number])
            place = slice(start, start + len(ids))
            tokens[row, place], segments[row, place] = ids, segment
            positions[row, place] = np.arange(len(ids))
            targets[row, place] = np.append(labels[1:], IGNORED)
            start = place.stop
    return Batch(*(jnp.asarray(x.reshape(parts, -1, length)) for x in fields))


def random_samples(lengths: list[int], vocab: int, seed: int = 0) -> list[tuple[Any, Any]]:
    """Random tokens; two thirds of them are learnt."""
    random = np.random.default_rng(seed)
    samples = []
    for length in lengths:
        ids = random.integers(0, vocab, length)
        samples.append((ids, np.where(random.random(length) < 2 / 3, ids, IGNORED)))
    return samples


def with_adapters(params: Qwen, rank: int = 4, dropout: float = 0.0, seed: int = 0) -> Qwen:
    """Adapters on every linear layer, B not zero."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(0, 0.3, shape), jnp.float32)

    def wrap(name: str, layer: Any) -> LoraLinear:
        outputs, inputs = layer.kernel.shape
        delta = Delta(draw(rank, inputs), draw(outputs, rank), None, None, 0.25, dropout)
        return LoraLinear(layer, (delta,))

    return map_linears(wrap, params)


def adapter_places(params: Qwen, mesh: Any) -> Qwen:
    """Adapters whole on every device; the network where it is."""
    whole = NamedSharding(mesh, PartitionSpec())
    place = lambda x: x.sharding if isinstance(x.sharding, NamedSharding) else whole
    return jax.tree.map(place, params)


def trainer(params: Qwen, recipe: Recipe, adapters_only: bool = False) -> Trainer:
    params = stack(jax.tree.map(jnp.copy, params))  # which uses the arrays up
    names = [n for n in named_leaves(params) if not adapters_only or ".deltas." in n]
    return Trainer(params, names, recipe, jnp.float32)


def run(trainer: Trainer, batches: list[Batch]) -> tuple[TrainState, list[Metrics]]:
    state, seen = trainer.start(), []
    for one in batches:
        state, metrics = trainer.step(state, jax.device_put(one, batch_sharding(trainer.mesh)))
        seen.append(metrics)
    return state, seen


def losses(metrics: list[Metrics]) -> np.ndarray:
    return np.array([float(m.loss) for m in metrics])
