"""Models that say what a test wants, with a tokenizer, and checkpoints on one device."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import convert
from qwen_jax.checkpoint import Assets, load
from qwen_jax.config import Config
from qwen_jax.decoding.generation_config import Defaults
from qwen_jax.nn.model import Qwen, build
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.text.tokenizer import Tokenizer
from tests.qwen_jax.networks import QWEN3

VOCAB = 416
NETWORK = QWEN3 | {
    "vocab_size": VOCAB,
    "hidden_size": VOCAB,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 8,
    "max_position_embeddings": 512,
}


def memorised_model(tokenizer: Tokenizer, *texts: str, **generation_config: Any) -> Qwen:
    """Knows texts by heart: after each of their tokens comes the next, whatever stood before it.

    What follows other tokens is always id 0, "!". Warm sampling at 100 degrees is near uniform.
    """
    follows: dict[int, int] = {}
    for text in texts:
        for one, other in itertools.pairwise(tokenizer.encode(text, specials=True)):
            assert follows.setdefault(one, other) == other, "a token with two followers"
    head = np.zeros((VOCAB, VOCAB), np.float32)
    for id in range(VOCAB):
        head[follows.get(id, 0), id] = 1

    def leaf(shape: tuple[int, ...], axes: tuple[str | None, ...], kind: str) -> jax.Array:
        return jnp.full(shape, float(kind == "ones"), jnp.float32)

    params = build(Config.from_hf(NETWORK), leaf)
    assert params.head is not None
    params = replace(
        params, embed=jnp.eye(VOCAB), head=replace(params.head, kernel=jnp.asarray(head))
    )
    return with_assets(params, tokenizer, **generation_config)


def with_assets(params: Qwen, tokenizer: Tokenizer | None, **generation_config: Any) -> Qwen:
    defaults = Defaults.from_hf(generation_config)
    return replace(params, assets=Assets(Path(), "qwen3", tokenizer, defaults))


def with_defaults(params: Qwen, **changes: Any) -> Qwen:
    """The same checkpoint, had its makers wished to generate in another way."""
    assets = params.assets
    return replace(params, assets=replace(assets, defaults=replace(assets.defaults, **changes)))


def converted(source: Path, made: Path) -> Qwen:
    """A Hugging Face folder as users have it, on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return load(convert.to_native(source, made), mesh=mesh)
