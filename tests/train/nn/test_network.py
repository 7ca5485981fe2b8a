"""What a training step keeps for its backward pass, and what it computes again."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from qwen_jax.config import Config
from qwen_jax.nn.lora import with_dropout
from qwen_jax.nn.model import Qwen, init
from tests.qwen_jax.networks import QWEN2
from tests.train.networks import with_adapters
from train.nn import Remat
from train.nn.network import hidden, stack

TOKENS = jnp.arange(24).reshape(2, 12)
POSITIONS = jnp.tile(jnp.arange(12), (2, 1))


@pytest.fixture(scope="module")
def network() -> Qwen:
    config = Config.from_hf(QWEN2 | {"num_hidden_layers": 3})
    params = stack(with_adapters(init(config, jax.random.key(0)), dropout=0.5))
    return with_dropout(params, jax.random.split(jax.random.key(1)))


def run(network: Qwen, remat: Remat) -> Any:
    """A function of the blocks, and those that it is to be asked for."""
    leaves, tree = jax.tree.flatten(network.blocks)
    floats = [n for n, leaf in enumerate(leaves) if leaf.dtype == jnp.float32]

    def asked(chosen: list[jax.Array]) -> jax.Array:
        blocks = [*leaves]
        for n, leaf in zip(floats, chosen, strict=True):
            blocks[n] = leaf
        params = replace(network, blocks=jax.tree.unflatten(tree, blocks))
        return hidden(params, TOKENS, POSITIONS, jnp.ones_like(TOKENS), remat, None)

    return asked, [leaves[n] for n in floats]


def test_nothing_elementwise_is_kept(network: Qwen) -> None:
    """Of a block's widest arrays the gate and up; no mask of a dropout, nothing dropped."""
    _, pull = jax.vjp(*run(network, "none"))
    kept = [x for x in jax.tree.leaves(pull) if x.shape[:3] == (3, *TOKENS.shape)]
    assert not [x.shape for x in kept if x.dtype == bool]
    assert [x.shape[3:] for x in kept].count((network.config.mlp,)) == 2


def test_less_memory_is_more_products(network: Qwen) -> None:
    def products(remat: Remat) -> int:
        asked, blocks = run(network, remat)
        gradient = jax.grad(lambda blocks: jnp.sum(asked(blocks)))
        return str(jax.make_jaxpr(gradient)(blocks)).count("dot_general")

    asked, blocks = run(network, "none")
    forward = str(jax.make_jaxpr(asked)(blocks)).count("dot_general")
    assert 2 * forward < products("none") <= 3 * forward + 1  # attention has its scores once more
    assert products("none") < products("dots") < products("full")
