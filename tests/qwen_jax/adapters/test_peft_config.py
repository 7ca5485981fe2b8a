"""adapter_config.json: everything in it is used, harmless, or refused by its name."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_jax.adapters.peft_config import LoraConfig, read_settings

# what PEFT 0.21 writes
CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "Qwen/Qwen2-7B",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 16,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "v_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}
FOUND = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def read(**changes: Any) -> LoraConfig:
    return read_settings(CONFIG | changes, FOUND)


def test_fields() -> None:
    wanted = LoraConfig(8, 16.0, ("q_proj", "v_proj"), 0.05, base="Qwen/Qwen2-7B")
    assert read() == wanted
    assert read_settings({"peft_type": "LORA", "r": 2, "lora_alpha": 3.5}, FOUND) == LoraConfig(
        2, 3.5, FOUND, task=None
    )


@pytest.mark.parametrize(
    "settings",
    [
        LoraConfig(8, 16.0, ("q_proj", "v_proj"), 0.05, base="Qwen/Qwen2-7B"),
        LoraConfig(1, 0.5, ".*_proj", rslora=True, modules_to_save=("wte", "lm_head"), task=None),
        LoraConfig(
            4, 8.0, "all-linear", rank_pattern={"q": 2}, alpha_pattern={"k": 3}, revision="a"
        ),
    ],
)
def test_written_and_read(settings: LoraConfig) -> None:
    written = json.loads(json.dumps(settings.to_json()))
    assert read_settings(written, FOUND) == settings
    assert written.keys() <= CONFIG.keys() - {
        "use_dora",
        "lora_bias",
        "exclude_modules",
    }  # PEFT 0.8


def test_scale() -> None:
    scales = lambda settings: list(settings.scales(FOUND[:2]).values())
    assert scales(LoraConfig(8, 16, ())) == [2, 2]
    assert scales(LoraConfig(8, 16, (), rslora=True)) == [16 / math.sqrt(8)] * 2
    patterns: Any = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 6}}
    assert scales(LoraConfig(8, 16, (), **patterns)) == [1.5, 2]
    assert scales(LoraConfig(8, 16, (), rslora=True, **patterns)) == [3, 16 / math.sqrt(8)]


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        ("model.layers.0.self_attn.q_proj", True),
        (r"^model\.layers\.0\..*", True),
        (r"layers\.[0-3]\.self_attn\.q_proj", True),
        ("attn.q_proj", False),  # from a dot on
        ("proj", False),
        ("q_pro", False),
        ("layers.0", False),
        (r"layers\.1\..*", False),
    ],
)
def test_patterns(pattern: str, matches: bool) -> None:
    """As PEFT's get_pattern_key; the first that matches counts."""
    settings = LoraConfig(8, 16, (), rank_pattern={pattern: 3, ".*": 5})
    assert settings.ranks(FOUND[:1]) == {FOUND[0]: 3 if matches else 5}


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (("q_proj",), True),
        (("proj",), False),
        (("self_attn.q_proj", "x"), True),
        ((FOUND[0],), True),
        (r".*\.q_proj", True),
        ("q_proj", False),  # a text is a regular expression for the whole name
        ("ALL-linear", True),
    ],
)
def test_targets(targets: Any, chosen: bool) -> None:
    found = FOUND[:1]
    assert LoraConfig(8, 16, targets).adapted(found) == (list(found) if chosen else [])
    assert not LoraConfig(8, 16, targets, modules_to_save=("q_proj",)).adapted(found)


def test_what_was_chosen_is_known() -> None:
    """Of keys that narrow the targets only the outcome counts, and is written again."""
    for key, value in [("layers_to_transform", [0]), ("exclude_modules", ["k_proj"])]:
        assert read(**{key: value}).targets == FOUND
    assert read(layers_to_transform=[0], layers_pattern="layers").targets == FOUND


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA' is supported"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"use_dora": True}, "use_dora is True; only False"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices is \[1\]"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"target_parameters": ["a"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changed the base"),
        ({"new_kind_of_sum": True}, "unknown keys .'new_kind_of_sum'."),
        ({"r": 0}, "r is 0, expected a whole number above 0"),
        ({"r": True}, "r is True"),
        ({"r": None}, "'r' is null"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"lora_dropout": math.nan}, "lora_dropout is nan"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        (
            {"target_modules": [1]},
            r"target_modules is \[1\], expected a list, each a text, or a text",
        ),
        ({"modules_to_save": "wte"}, "modules_to_save is 'wte'"),
        (
            {"rank_pattern": {"q": 1.5}},
            r"rank_pattern\[q\] is 1.5, expected a whole number above 0",
        ),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\[q\] is 0"),
        ({"alpha_pattern": {"q": True}}, r"alpha_pattern\[q\] is True, expected a number above 0"),
        ({"alpha_pattern": [1]}, "alpha_pattern is"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern cannot be used: .*no regular expression"),
        ({"rank_pattern": {"(?i)a": 1}}, "no regular expression"),
        ({"alpha_pattern": {"a{99999999999}": 1}}, "alpha_pattern cannot be used: .* no regular"),
        (
            {"rank_pattern": {".*" * 13 + "!": 1}},
            "rank_pattern cannot be used: it takes too",
        ),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path is 7, expected a text"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_unknown_keys_that_are_off() -> None:
    assert read(from_the_future=None, another=False, third={}) == read()


def test_all_problems_at_once() -> None:
    with pytest.raises(ValueError, match=r"use_dora.*r is -1.*lora_dropout"):
        read(use_dora=True, r=-1, lora_dropout=2)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(CONFIG)), json_values, max_size=4))
def test_any_values(changes: dict[str, Any]) -> None:
    """Settings that mean something, or a ValueError; never anything else."""
    try:
        settings = read(**changes)
    except ValueError:
        return
    assert settings.ranks(FOUND[:1])[FOUND[0]] >= 1
    assert math.isfinite(settings.scales(FOUND[:1])[FOUND[0]])
    json.dumps(settings.to_json())
