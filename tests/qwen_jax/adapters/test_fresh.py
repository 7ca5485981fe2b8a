"""Adapters to train: as many numbers as the original's, from where PEFT starts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.adapters import attach
from qwen_jax.adapters.peft_config import LoraConfig
from qwen_jax.config import Config
from qwen_jax.decoding import decode
from qwen_jax.nn.model import Qwen, build, init
from tests.qwen_jax.networks import QWEN2, V1, distance

IDS = np.array([[5, 17, 90, 3]])


def network(hf: dict[str, Any]) -> Qwen:
    return init(Config.from_hf(hf), jax.random.key(1))


SIZES = {  # width, layers, heads, mlp as stored, vocabulary; the numbers the original prints
    53_673_984: (2048, 24, 16, 11008, 151936),
    143_130_624: (4096, 32, 32, 22016, 151936),
    223_150_080: (5120, 40, 40, 27392, 152064),
    754_974_720: (8192, 80, 64, 49152, 152064),
}


@pytest.mark.parametrize("count", SIZES)
def test_count(count: int) -> None:
    names = "hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size".split()
    sizes = dict(zip(names, SIZES[count], strict=True)) | {"kv_channels": 128}
    leaf = lambda shape, axes, kind: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    params = build(Config.from_hf(V1 | sizes), leaf)
    settings = LoraConfig(64, 16.0, attach.V1_TARGETS)
    make = lambda key: dict(attach.fresh(params, settings, key).deltas)
    made = jax.eval_shape(make, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(made)) == count


def test_fresh() -> None:
    """It changes nothing, and starts where PEFT starts."""
    params = network(QWEN2 | {"tie_word_embeddings": False})
    settings = LoraConfig(32, 16.0, attach.LATER_TARGETS, 0.1, modules_to_save=("lm_head",))
    adapter = attach.fresh(params, settings, jax.random.key(3))
    assert len(adapter.deltas) == 7
    for a, b in adapter.deltas.values():
        bound = a.shape[1] ** -0.5
        assert 0.95 * bound < np.abs(a).max() <= bound
        assert abs(np.mean(a)) < 0.1 * bound
        assert not b.any()
    first, second, *_ = (np.asarray(a) for a, _ in adapter.deltas.values())
    assert not np.array_equal(first, second)
    made: Any = attach.add(params, adapter)
    assert distance(decode.score(made, IDS), decode.score(params, IDS)) < 1e-6
    assert {d.dropout for d in made.blocks[0].attn.qkv.deltas} == {0.1}
    back = attach.extract(made, adapter.settings)
    np.testing.assert_array_equal(back.saved["lm_head.weight"], made.head.kernel)


def test_a_layer_starts_alike_whatever_else_is_chosen() -> None:
    params = network(V1)
    start = lambda *targets: attach.fresh(params, LoraConfig(2, 1.0, targets), jax.random.key(0))
    few, many = start("w1"), start("c_attn", "w1")
    for module, (a, _) in few.deltas.items():
        np.testing.assert_array_equal(a, many.deltas[module][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            LoraConfig(1, 1.0, ("q_proj", "w1")),
            r"targets \['q_proj'\] are not .* c_attn, c_proj, w1",
        ),
        (LoraConfig(1, 1.0, ("lm_head",)), r"targets \['lm_head'\] are not in this network"),
        (LoraConfig(1, 1.0, r".*q_proj"), "match no linear layer"),
        (
            LoraConfig(1, 1.0, ("w1",), modules_to_save=("embed",)),
            "modules_to_save .'embed'. are not",
        ),
    ],
)
def test_unknown_targets(settings: LoraConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach.fresh(network(V1), settings, jax.random.key(0))
