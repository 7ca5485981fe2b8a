"""A config.json for a network that was not converted: the model type that says the same."""

from typing import Any

from qwen_jax.config import Config


def to_hf(config: Config) -> dict[str, Any]:
    """What `Config.from_hf` reads as `config`; ValueError if no model type has its features."""
    c = config
    made = _v1(c) if c.ntk_length or c.logn_length else _modern(c)
    if Config.from_hf(made) != config:
        raise ValueError(
            f"no Hugging Face model type has this combination of features, so {config} has no "
            "config.json; see qwen_jax/config.py for what qwen, qwen2 and qwen3 allow"
        )
    return made


def _v1(c: Config) -> dict[str, Any]:
    return _common(c) | {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "kv_channels": c.head_dim,
        "intermediate_size": 2 * c.mlp,
        "layer_norm_epsilon": c.norm_eps,
        "rotary_emb_base": c.rope_base,
        "seq_length": c.ntk_length or c.logn_length,
        "use_dynamic_ntk": c.ntk_length is not None,
        "use_logn_attn": c.logn_length is not None,
        "no_bias": True,
    }


def _modern(c: Config) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": c.rope_base, "rope_type": "default"}
    if c.yarn is not None:
        yarn = dict(vars(c.yarn))
        yarn["original_max_position_embeddings"] = yarn.pop("original_length")
        rope |= yarn | {"rope_type": "yarn"}
    return _common(c) | {
        "architectures": ["Qwen3ForCausalLM" if c.qk_norm else "Qwen2ForCausalLM"],
        "model_type": "qwen3" if c.qk_norm else "qwen2",
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.mlp,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": rope,
    }


def _common(c: Config) -> dict[str, Any]:
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "max_position_embeddings": c.max_length,
        "initializer_range": c.init_std,
        "tie_word_embeddings": c.tied,
    }
