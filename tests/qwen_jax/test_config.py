"""config.json is read strictly, and everything that is read matters."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from qwen_jax.config import Config, Yarn
from qwen_jax.decoding.decode import score
from qwen_jax.nn.model import build, init
from qwen_jax.nn.rope import angles
from tests.conftest import GOLDEN
from tests.qwen_jax.networks import QWEN2, QWEN3, V1, distance

OLD_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "ffn_hidden_size",
    "max_position_embeddings": "n_positions",
    "emb_dropout_prob": "embd_pdrop",
    "attn_dropout_prob": "attn_pdrop",
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}


def hf(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "config.json").read_text())


def test_v1() -> None:
    assert Config.from_hf(hf("v1/longctx")) == Config(
        vocab=512,
        width=64,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=16,
        mlp=176,
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        tied=False,
        rope_base=10000.0,
        ntk_length=32,
        logn_length=32,
        yarn=None,
        max_length=256,
        init_std=0.08,
    )


@pytest.mark.parametrize("rope_base", ["rotary_emb_base", "rope_theta"])
def test_v1_of_august_2023(rope_base: str) -> None:
    """The original 7B's spelling; padded_vocab_size are the rows that exist."""
    new = hf("v1/longctx") | {"rotary_emb_base": 5e5}
    old = {OLD_NAMES.get(key, key): value for key, value in new.items()}
    del old["kv_channels"]
    old[rope_base] = old.pop("rotary_emb_base")
    old |= {"vocab_size": 500, "padded_vocab_size": 512, "resid_pdrop": 0.1}
    old |= {"pos_emb": "rotary", "activation": "swiglu", "params_dtype": "torch.bfloat16"}
    assert Config.from_hf(old) == Config.from_hf(new)


@pytest.mark.parametrize("name", ["ntk", "logn"])
def test_v1_long_context_features_are_separate(name: str) -> None:
    config = Config.from_hf(hf(f"v1/{name}_only"))
    on = {"ntk": config.ntk_length, "logn": config.logn_length}
    assert on == {"ntk": None, "logn": None, name: 32}


def test_v1_defaults() -> None:
    config = Config.from_hf({k: v for k, v in V1.items() if not k.startswith("use_")})
    assert (config.ntk_length, config.logn_length, config.max_length) == (None, None, 8192)


def test_qwen2() -> None:
    config = Config.from_hf(hf("modern/qwen2_gqa"))
    assert (config.heads, config.kv_heads, config.head_dim, config.groups) == (4, 2, 16, 2)
    assert (config.qkv_bias, config.qk_norm, config.tied, config.mlp) == (True, False, False, 160)
    assert (config.rope_base, config.norm_eps, config.max_length) == (1e6, 1e-6, 256)
    for unread in (True, False, None):  # transformers' Qwen2 has no such key
        assert Config.from_hf(hf("modern/qwen2_gqa") | {"attention_bias": unread}) == config
    grouped = {k: v for k, v in hf("modern/qwen2_gqa").items() if k != "num_key_value_heads"}
    assert Config.from_hf(grouped).kv_heads == 4  # early Qwen1.5 files leave it out


def test_qwen3() -> None:
    config = Config.from_hf(hf("modern/qwen3"))
    assert (config.head_dim, config.qkv_bias, config.qk_norm, config.tied) == (
        32,
        False,
        True,
        True,
    )


@pytest.mark.parametrize("kind", [{"type": "yarn"}, {"rope_type": "yarn"}])
def test_yarn_in_both_spellings(kind: dict[str, str]) -> None:
    old = {k: v for k, v in hf("modern/qwen25_yarn").items() if k != "rope_parameters"}
    old |= {"rope_theta": 1e6, "rope_scaling": kind | YARN}
    made = Config.from_hf(old)
    assert made == Config.from_hf(hf("modern/qwen25_yarn"))
    assert made.yarn == Yarn(4.0, 64, 32.0, 1.0, 0.1 * np.log(4) + 1, True)


def test_yarn_options() -> None:
    scaling = {"type": "yarn", "factor": 8, "beta_fast": 16, "beta_slow": 2, "truncate": False}
    made = Config.from_hf(
        QWEN2
        | {"max_position_embeddings": 128, "rope_scaling": scaling | {"attention_factor": 1.5}}
    )
    assert made.yarn == Yarn(8.0, 128, 16.0, 2.0, 1.5, False)
    assert made.max_length == 8 * 128  # where a warning begins
    mscale = {"mscale": 0.7, "mscale_all_dim": 1.0}
    made = Config.from_hf(QWEN2 | {"rope_scaling": scaling | mscale})
    wanted = (0.07 * np.log(8) + 1) / (0.1 * np.log(8) + 1)
    assert made.yarn is not None
    assert made.yarn.attention_factor == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("base", [V1, QWEN2, QWEN3], ids=lambda c: c["model_type"])
def test_harmless_keys_are_harmless(base: dict[str, Any]) -> None:
    harmless = {
        "architectures": ["X"],
        "auto_map": {"AutoConfig": "evil.py"},
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "use_flash_attn": True,
        "bf16": True,
        "attention_dropout": 0.5,
        "quantization_config": {"bits": 4},
        "eos_token_id": [1, 2],
        "transformers_version": "9",
    }
    assert Config.from_hf(base | harmless) == Config.from_hf(base)


REFUSED = [
    (V1, {"model_type": "qwen2_moe"}, r"qwen2_moe.*dense"),
    (V1, {"model_type": None}, "model_type None"),
    (V1, {"mystery": 1}, r"unknown keys \['mystery'\]"),
    (V1, {"rotary_pct": 0.5}, "rotary_pct is 0.5"),
    (V1, {"no_bias": False}, "no_bias is False"),
    (V1, {"scale_attn_weights": False}, "scale_attn_weights is False"),
    (V1, {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    (V1, {"activation": "gelu"}, "activation is 'gelu'"),
    (V1, {"pos_emb": "alibi"}, "pos_emb is 'alibi'"),
    (V1, {"kv_channels": 16}, "kv_channels 16 do not make up hidden_size 32"),
    (V1, {"intermediate_size": 97}, "intermediate_size 97 does not divide by 2"),
    (V1, {"hidden_size": "32"}, "hidden_size is '32'"),
    (V1, {"n_embd": 64}, "n_embd"),
    (V1, {"seq_length": 0}, "seq_length is 0"),
    (V1, {"seq_length": True}, "seq_length is True"),
    (V1, {"use_dynamic_ntk": 1}, "use_dynamic_ntk is 1"),
    (V1, {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
    (V1, {"num_hidden_layers": -2}, "num_hidden_layers is -2"),
    (V1, {"rotary_emb_base": 0}, "rotary_emb_base is 0"),
    (QWEN2, {"use_sliding_window": True}, "use_sliding_window is True"),
    (QWEN2, {"layer_types": ["sliding_attention"]}, "sliding_attention"),
    (QWEN2, {"attention_bias": "no"}, "attention_bias is 'no', expected true or false"),
    (QWEN3, {"attention_bias": True}, "attention_bias is True"),
    (QWEN2, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    (QWEN2, {"num_key_value_heads": 3}, "num_attention_heads 4 does not divide by 3"),
    (QWEN2, {"rope_scaling": {"type": "linear", "factor": 2}}, "'linear'"),
    (QWEN2, {"rope_scaling": {"type": "yarn"}}, "'rope_scaling.factor' is missing"),
    (QWEN2, {"rope_scaling": {"type": "yarn", "factor": 4.0, "extra": 1}}, "extra"),
    (QWEN2, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_theta"),
    (QWEN3, {"head_dim": 1.5}, "head_dim is 1.5"),
    (QWEN3, {"mlp_only_layers": []}, "mlp_only_layers"),
]


@pytest.mark.parametrize(
    ("base", "change", "words"), REFUSED, ids=[f"{b['model_type']}-{c}" for b, c, _ in REFUSED]
)
def test_refused(base: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config.from_hf(base | change)


@pytest.mark.parametrize("key", sorted({*V1} - {"model_type", "kv_channels"}))
def test_null_is_no_size(key: str) -> None:
    """A null is like an absent key: a default if there is one, else an error that names it."""
    absent = {k: v for k, v in V1.items() if k != key}
    try:
        wanted = Config.from_hf(absent)
    except ValueError:
        with pytest.raises(ValueError, match=key):
            Config.from_hf(V1 | {key: None})
    else:
        assert Config.from_hf(V1 | {key: None}) == wanted


@pytest.mark.parametrize("value", [-1.0, 0, "10000", True, float("inf"), [1]])
@pytest.mark.parametrize("where", ["top", "rope_parameters"])
def test_an_impossible_rope_theta_is_named(where: str, value: Any) -> None:
    theta = {"rope_theta": value}
    config = {k: v for k, v in QWEN2.items() if k != "rope_theta"}
    config |= theta if where == "top" else {where: theta}
    with pytest.raises(ValueError, match="rope_theta is"):
        Config.from_hf(config)


@pytest.mark.parametrize("value", [5, "yarn", ["yarn"]])
def test_rope_scaling_must_be_an_object(value: Any) -> None:
    with pytest.raises(ValueError, match="rope_scaling"):
        Config.from_hf(QWEN2 | {"rope_scaling": value})


@pytest.mark.parametrize(
    "config", [V1 | {"hidden_size": 36, "kv_channels": 9}, QWEN3 | {"head_dim": 9}]
)
def test_heads_of_odd_size_cannot_turn(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kv_channels|head_dim"):
        Config.from_hf(config)


def test_all_problems_at_once() -> None:
    bad = {"rotary_pct": 0.25, "mystery": 1, "seq_length": "long", "vocab_size": 0}
    without = {k: v for k, v in V1.items() if k != "hidden_size"}
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        Config.from_hf(without | bad)
    assert all(word in str(caught.value) for word in [*bad, "hidden_size"])


def test_config_is_frozen() -> None:
    config = Config.from_hf(V1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = 2  # type: ignore[misc]
    assert hash(config) == hash(Config.from_hf(V1))


# --- every field has a reader ----------------------------------------------------------------
LONG = Yarn(4.0, 8, 4.0, 1.0, 1.1, True)
PLAIN = Config.from_hf(V1 | {"seq_length": 4, "use_dynamic_ntk": False, "use_logn_attn": False})
SHAPES: dict[str, Any] = {"vocab": 97, "width": 24, "layers": 2, "heads": 8, "kv_heads": 2}
SHAPES |= {"head_dim": 16, "mlp": 40, "qkv_bias": False, "qk_norm": True, "tied": True}
NUMBERS: dict[str, Any] = {"norm_eps": 1e-2, "rope_base": 500.0, "ntk_length": 4}
NUMBERS |= {"logn_length": 4, "yarn": LONG}
FRESH = {"init_std": 0.5}
FOR_READERS = {"max_length": 7}  # of Config, not of the network: generate warns past it


def test_every_field_is_tried() -> None:
    fields = {field.name for field in dataclasses.fields(Config)}
    assert {*SHAPES, *NUMBERS, *FRESH, *FOR_READERS} == fields
    assert all(getattr(PLAIN, k) != v for k, v in (SHAPES | NUMBERS | FRESH).items())


@pytest.mark.parametrize("field", SHAPES)
def test_field_changes_shapes(field: str) -> None:
    shapes = lambda config: build(config, lambda shape, axes, kind: shape)
    changed = dataclasses.replace(PLAIN, **{field: SHAPES[field]})
    leaves = [str(jax.tree.flatten_with_path(shapes(c))[0]) for c in (changed, PLAIN)]
    assert leaves[0] != leaves[1]


@pytest.fixture(scope="module")
def plain() -> tuple[list[Array], np.ndarray]:
    """The leaves of one network, and its logits."""
    leaves = jax.tree.leaves(init(dataclasses.replace(PLAIN, init_std=0.3), jax.random.key(0)))
    return leaves, logits(PLAIN, leaves)


def logits(config: Config, leaves: list[Array]) -> np.ndarray:
    structure = jax.tree.structure(build(config, lambda shape, axes, kind: 0))
    return np.asarray(score(jax.tree.unflatten(structure, leaves), np.arange(12)[None]))


@pytest.mark.parametrize("field", NUMBERS)
def test_field_changes_logits(field: str, plain: tuple[list[Array], np.ndarray]) -> None:
    leaves, wanted = plain
    changed = logits(dataclasses.replace(PLAIN, **{field: NUMBERS[field]}), leaves)
    assert distance(changed, wanted) > 1e-3


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Yarn)])
def test_field_of_yarn_changes_angles(field: str) -> None:
    other: dict[str, Any] = {"factor": 8.0, "original_length": 128, "beta_fast": 4.0}
    other |= {"beta_slow": 0.5, "attention_factor": 1.3, "truncate": False}
    yarn = Yarn(4.0, 64, 8.0, 1.0, 1.1, True)
    config = dataclasses.replace(PLAIN, head_dim=64, yarn=yarn)
    changed = dataclasses.replace(config, yarn=dataclasses.replace(yarn, **{field: other[field]}))
    cosines = [angles(c, jnp.arange(60)[None], jnp.array([60]))[0] for c in (config, changed)]
    assert distance(*cosines) > 1e-2


def test_init_std_changes_fresh_weights() -> None:
    fresh = [
        init(dataclasses.replace(PLAIN, init_std=std), jax.random.key(0)).embed
        for std in (0.1, 0.5)
    ]
    np.testing.assert_allclose(fresh[1], fresh[0] * 5, rtol=1e-6)
