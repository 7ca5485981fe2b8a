"""What a network is, and the strict reader of Hugging Face's config.json.

Config lists features, never families: everything that differs between Qwen-7B of 2023
and Qwen3 is a field here, and no code below asks for a model's name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_jax.files.strict_json import StrictObject


@dataclass(frozen=True)
class Yarn:
    """YaRN interpolation of the rotary frequencies (arXiv 2309.00071), as transformers reads it."""

    factor: float  # how many times longer than the trained length
    original_length: int  # tokens the unscaled model was trained on
    beta_fast: float
    beta_slow: float
    attention_factor: float  # multiplies cos and sin
    truncate: bool  # round the correction range to whole dimensions


@dataclass(frozen=True)
class Config:
    """A dense Qwen decoder. Complete: nothing is filled in later, no code below has defaults."""

    vocab: int  # rows of the embedding, padding rows included
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    tied: bool  # logits reuse the embedding
    rope_base: float
    ntk_length: int | None  # dynamic NTK starts past this many tokens; None: off
    logn_length: int | None  # queries are scaled by log-n past this position; None: off
    yarn: Yarn | None
    max_length: int  # tokens the checkpoint says it can hold; a longer text draws a warning
    init_std: float  # standard deviation of fresh weights

    @property
    def groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "Config":
        """Read the content of a Hugging Face config.json.

        Every key is used, or known to be harmless, or named in the ValueError; all problems
        are collected and raised together.
        """
        reader = StrictObject("config.json", config)
        model_type = reader.take("model_type")
        if model_type == "qwen":
            made = _read_v1(reader)
        elif model_type in ("qwen2", "qwen3"):
            made = _read_modern(reader, qk_norm=model_type == "qwen3")
        else:
            raise ValueError(
                f"config.json has model_type {model_type!r}; "
                "qwen_jax runs the dense models: qwen, qwen2 (also Qwen1.5 and 2.5) and qwen3"
            )
        reader.finish(_HARMLESS)
        return Config(**made)


# Keys that change nothing we compute: bookkeeping, training-time dropout, choices of kernel.
_HARMLESS = frozenset(
    "architectures auto_map tokenizer_class tokenizer_type transformers_version torch_dtype dtype "
    "_name_or_path _commit_hash use_cache onnx_safe bos_token_id eos_token_id pad_token_id "
    "attn_dropout_prob emb_dropout_prob embd_pdrop attn_pdrop resid_pdrop attention_dropout "
    "use_flash_attn use_cache_quantization use_cache_kernel softmax_in_fp32 bf16 fp16 fp32 "
    "params_dtype apply_residual_connection_post_layernorm bias_dropout_fusion "
    "max_window_layers quantization_config return_dict output_attentions output_hidden_states "
    "is_decoder is_encoder_decoder".split()
)


def _read_v1(reader: StrictObject) -> dict[str, Any]:
    """The original Qwen, in the spelling of August 2023 (n_embd, n_layer, ...) or the later one."""
    width = reader.size("hidden_size", "n_embd")
    heads = reader.size("num_attention_heads", "n_head")
    head_dim = reader.size("kv_channels", default=width // heads)
    if heads * head_dim != width:
        reader.problems.append(
            f"{heads} heads of kv_channels {head_dim} do not make up hidden_size {width}"
        )
    reader.divide("kv_channels", head_dim, 2)
    trained = reader.size("seq_length")
    vocab = reader.size("vocab_size")
    base = reader.number("rotary_emb_base", "rope_theta", default=10000.0)
    made = {
        # "padded_vocab_size" is the old spelling of the rows that exist, vocab_size of those used
        "vocab": reader.size("padded_vocab_size", default=vocab),
        "width": width,
        "layers": reader.size("num_hidden_layers", "n_layer"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": head_dim,
        # the file counts gate and up together
        "mlp": reader.divide(
            "intermediate_size", reader.size("intermediate_size", "ffn_hidden_size"), 2
        ),
        "norm_eps": reader.number("layer_norm_epsilon", default=1e-6),
        "qkv_bias": True,
        "qk_norm": False,
        "tied": False,
        "rope_base": base,
        "ntk_length": trained if reader.flag("use_dynamic_ntk", default=False) else None,
        "logn_length": trained if reader.flag("use_logn_attn", default=False) else None,
        "yarn": None,
        "max_length": reader.size("max_position_embeddings", "n_positions", default=8192),
        "init_std": reader.number("initializer_range", default=0.02),
    }
    reader.require("no_bias", True)
    reader.require("tie_word_embeddings", False)
    reader.require("scale_attn_weights", True)
    reader.require("rotary_pct", 1.0)
    reader.require("pos_emb", "rotary")
    reader.require("activation", "swiglu")
    return made


def _read_modern(reader: StrictObject, qk_norm: bool) -> dict[str, Any]:
    """Qwen1.5, Qwen2, Qwen2.5 (model_type qwen2) and dense Qwen3."""
    width = reader.size("hidden_size")
    heads = reader.size("num_attention_heads")
    kv_heads = reader.size("num_key_value_heads", default=heads)
    reader.divide("num_attention_heads", heads, kv_heads)
    head_dim = reader.size("head_dim", default=max(1, width // heads))
    reader.divide("head_dim", head_dim, 2)
    layers = reader.size("num_hidden_layers")
    max_length = reader.size("max_position_embeddings", default=32768)
    base, yarn = _read_rope(reader, max_length)
    reader.require("attention_bias", *((False,) if qk_norm else (True,)))
    reader.require("hidden_act", "silu")
    reader.require("use_sliding_window", False)
    reader.left.pop("sliding_window", None)  # its size, without effect while it is off
    kinds = reader.take("layer_types", default=["full_attention"] * layers)
    if kinds != ["full_attention"] * layers:
        reader.problems.append(f"layer_types is {kinds!r}; only full_attention is supported")
    return {
        "vocab": reader.size("vocab_size"),
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "mlp": reader.size("intermediate_size"),
        "norm_eps": reader.number("rms_norm_eps", default=1e-6),
        "qkv_bias": not qk_norm,
        "qk_norm": qk_norm,
        "tied": reader.flag("tie_word_embeddings", default=False),
        "rope_base": base,
        "ntk_length": None,
        "logn_length": None,
        "yarn": yarn,
        "max_length": max_length,
        "init_std": reader.number("initializer_range", default=0.02),
    }


def _read_rope(reader: StrictObject, max_length: int) -> tuple[float, Yarn | None]:
    """rope_theta with rope_scaling, or the newer rope_parameters that hold both."""
    content = reader.take("rope_parameters", "rope_scaling", default={})
    if not isinstance(content, Mapping):
        reader.problems.append(f"rope_scaling is {content!r}, expected an object")
        content = {}
    rope = StrictObject("rope_scaling", content)
    bases = [
        r.number("rope_theta", default=10000.0) for r in (reader, rope) if "rope_theta" in r.left
    ]
    if len(set(bases)) > 1:
        reader.problems.append(f"rope_theta is {bases[0]} and {bases[1]} in one file")
    kind = rope.take("rope_type", "type", default="default")
    yarn = None
    if kind == "yarn":
        factor = rope.number("factor")
        mscale = rope.number("mscale", default=0.0) if "mscale" in rope.left else 0.0
        all_dim = rope.number("mscale_all_dim") if "mscale_all_dim" in rope.left else 0.0
        usual = _mscale(factor, mscale) / _mscale(factor, all_dim) if mscale and all_dim else None
        yarn = Yarn(
            factor=factor,
            original_length=rope.size("original_max_position_embeddings", default=max_length),
            beta_fast=rope.number("beta_fast", default=32.0),
            beta_slow=rope.number("beta_slow", default=1.0),
            attention_factor=rope.number("attention_factor", default=usual or _mscale(factor, 1.0)),
            truncate=rope.flag("truncate", default=True),
        )
    elif kind != "default":
        rope.problems.append(f"rope_type is {kind!r}; only 'default' and 'yarn' are supported")
    reader.problems += rope.problems
    if rope.left and kind in ("default", "yarn"):
        reader.problems.append(f"unknown rope_scaling keys {sorted(rope.left)}")
    return bases[0] if bases else 10000.0, yarn


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
