"""What a network is, and the strict reader of Hugging Face's config.json.

Config lists features, never families: everything that differs between Qwen-7B of 2023
and Qwen3 is a field here, and no code below asks for a model's name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_jax.files.strict_json import (
    ANYTHING,
    COUNT,
    FLAG,
    LARGEST_SIZE,
    POSITIVE,
    SIZE,
    StrictObject,
    is_off,
    shown,
    whole,
)

LAYERS = whole(1, 10_000)


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
        are collected and raised together. `notices` says what is read otherwise than it asks.
        """
        reader = StrictObject("config.json", config)
        model_type = reader.take(ANYTHING, "model_type", default=None)
        if model_type == "qwen":
            made = _read_v1(reader)
        elif model_type in ("qwen2", "qwen3"):
            made = _read_modern(reader, qk_norm=model_type == "qwen3")
        else:
            raise ValueError(
                f"config.json has model_type {shown(model_type)}; "
                "qwen_jax runs the dense models: qwen, qwen2 (also Qwen1.5 and 2.5) and qwen3"
            )
        if not is_off(reader.left.pop("quantization", None)):
            reader.problems.append(
                "quantization is what MLX packs weights with, in a way of its own; take the model "
                "that it was made from, or one packed by GPTQ or AWQ"
            )
        reader.finish(_HARMLESS)
        return Config(**made)


# Keys that change nothing we compute: bookkeeping, training-time dropout, choices of kernel, and
# what `decoding.generation_config` and `convert` read.
_HARMLESS = frozenset(
    "architectures auto_map tokenizer_class tokenizer_type transformers_version torch_dtype dtype "
    "_name_or_path _commit_hash _attn_implementation _attn_implementation_autoset "
    "attn_implementation use_cache onnx_safe bos_token_id eos_token_id pad_token_id sep_token_id "
    "attn_dropout_prob emb_dropout_prob embd_pdrop attn_pdrop resid_pdrop attention_dropout "
    "hidden_dropout use_flash_attn use_cache_quantization use_cache_kernel softmax_in_fp32 bf16 "
    "fp16 fp32 params_dtype apply_residual_connection_post_layernorm bias_dropout_fusion "
    "quantization_config return_dict output_attentions output_hidden_states gradient_checkpointing "
    "is_decoder is_encoder_decoder id2label label2id num_labels problem_type finetuning_task "
    "chunk_size_feed_forward unsloth_fixed unsloth_version model_name".split()
)


def notices(config: Mapping[str, Any]) -> list[str]:
    """What a config.json asks for that is read otherwise, a line each."""
    made = []
    if (most := _dual_chunk_length(config)) is not None:
        made.append(
            "dual_chunk_attention_config in config.json is not done: attention is plain, as the "
            f"model was trained, for texts of up to {most} tokens; longer ones draw a warning"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, Mapping) and rope.get("attn_factor") is not None:
        made.append(
            "attn_factor in config.json's rope_scaling is not read, as in transformers, which "
            "knows attention_factor"
        )
    return made


def _dual_chunk_length(config: Mapping[str, Any]) -> int | None:
    """How long a text may be before dual chunk attention (Qwen2.5-1M) would change anything."""
    content = config.get("dual_chunk_attention_config")
    if not isinstance(content, Mapping):
        return None
    most = content.get("original_max_position_embeddings", content.get("chunk_size"))
    return most if SIZE.holds(most) else None


def _read_v1(reader: StrictObject) -> dict[str, Any]:
    """The original Qwen, in the spelling of August 2023 (n_embd, n_layer, ...) or the later one."""
    width = reader.take(SIZE, "hidden_size", "n_embd")
    heads = reader.take(SIZE, "num_attention_heads", "n_head")
    head_dim = reader.take(SIZE, "kv_channels", default=max(1, width // heads))
    if heads * head_dim != width:
        reader.problems.append(
            f"{heads} heads of kv_channels {head_dim} do not make up hidden_size {width}"
        )
    reader.divide("kv_channels", head_dim, 2)
    trained = reader.take(SIZE, "seq_length")
    vocab = reader.take(SIZE, "vocab_size")
    base = reader.take(POSITIVE, "rotary_emb_base", "rope_theta", default=10000.0)
    made = {
        # "padded_vocab_size" is the old spelling of the rows that exist, vocab_size of those used
        "vocab": reader.take(SIZE, "padded_vocab_size", default=vocab),
        "width": width,
        "layers": reader.take(LAYERS, "num_hidden_layers", "n_layer"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": head_dim,
        # the file counts gate and up together
        "mlp": reader.divide(
            "intermediate_size", reader.take(SIZE, "intermediate_size", "ffn_hidden_size"), 2
        ),
        "norm_eps": float(reader.take(POSITIVE, "layer_norm_epsilon", default=1e-6)),
        "qkv_bias": True,
        "qk_norm": False,
        "tied": False,
        "rope_base": float(base),
        "ntk_length": trained if reader.take(FLAG, "use_dynamic_ntk", default=False) else None,
        "logn_length": trained if reader.take(FLAG, "use_logn_attn", default=False) else None,
        "yarn": None,
        "max_length": reader.take(SIZE, "max_position_embeddings", "n_positions", default=8192),
        "init_std": float(reader.take(POSITIVE, "initializer_range", default=0.02)),
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
    width = reader.take(SIZE, "hidden_size")
    heads = reader.take(SIZE, "num_attention_heads")
    kv_heads = reader.take(SIZE, "num_key_value_heads", default=heads)
    reader.divide("num_attention_heads", heads, kv_heads)
    head_dim = reader.take(SIZE, "head_dim", default=max(1, width // heads))
    reader.divide("head_dim", head_dim, 2)
    layers = reader.take(LAYERS, "num_hidden_layers")
    max_length = reader.take(SIZE, "max_position_embeddings", default=32768)
    base, yarn = _read_rope(reader, max_length)
    if yarn is not None:
        max_length = min(LARGEST_SIZE, round(yarn.factor * yarn.original_length))
    elif chunk := _dual_chunk_length(reader.left):
        max_length = min(max_length, chunk)
        del reader.left["dual_chunk_attention_config"]
    if qk_norm:
        reader.require("attention_bias", False)
    else:  # q, k and v have one whatever the file says, as in transformers
        reader.take(FLAG, "attention_bias", default=True)
    reader.require("hidden_act", "silu")
    reader.require("is_causal", True)
    _expect_full_attention(reader, layers)
    return {
        "vocab": reader.take(SIZE, "vocab_size"),
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "mlp": reader.take(SIZE, "intermediate_size"),
        "norm_eps": float(reader.take(POSITIVE, "rms_norm_eps", default=1e-6)),
        "qkv_bias": not qk_norm,
        "qk_norm": qk_norm,
        "tied": reader.take(FLAG, "tie_word_embeddings", default=False),
        "rope_base": base,
        "ntk_length": None,
        "logn_length": None,
        "yarn": yarn,
        "max_length": max_length,
        "init_std": float(reader.take(POSITIVE, "initializer_range", default=0.02)),
    }


def _expect_full_attention(reader: StrictObject, layers: int) -> None:
    """No layer may look through a window; what says how wide one were is then without effect."""
    sliding = reader.take(FLAG, "use_sliding_window", default=False)
    no_window = "sliding_window" in reader.left and reader.left["sliding_window"] is None
    reader.left.pop("sliding_window", None)
    first = reader.take(COUNT, "max_window_layers", default=0)  # the first that slides
    if sliding and not no_window and first < layers:
        reader.problems.append(
            "use_sliding_window is True; only False is supported, or max_window_layers that leave "
            f"all {layers} layers whole"
        )
    full = ["full_attention"] * layers
    if (kinds := reader.take(ANYTHING, "layer_types", default=full)) != full:
        reader.wrong("layer_types", kinds, f"full_attention for each of {layers} layers")


def _read_rope(reader: StrictObject, max_length: int) -> tuple[float, Yarn | None]:
    """rope_theta with rope_scaling, or the newer rope_parameters that hold both."""
    rope = reader.inside("rope_parameters", "rope_scaling")
    bases = [r.take(POSITIVE, "rope_theta", default=None) for r in (reader, rope)]
    found = [float(base) for base in bases if base is not None]
    if len(set(found)) > 1:
        reader.problems.append(f"rope_theta is {found[0]} and {found[1]} in one file")
    kind = rope.take(ANYTHING, "rope_type", "type", default="default")
    yarn = None
    if kind == "yarn":
        yarn = _read_yarn(rope, max_length)
    elif kind != "default":
        rope.wrong("rope_type", kind, "'default' or 'yarn'")
        rope.left.clear()
    rope.require("partial_rotary_factor", 1.0)
    rope.leave()
    return found[0] if found else 10000.0, yarn


def _read_yarn(rope: StrictObject, max_length: int) -> Yarn:
    factor = float(rope.take(POSITIVE, "factor"))
    mscale = rope.take(POSITIVE, "mscale", default=None)
    all_dim = rope.take(POSITIVE, "mscale_all_dim", default=None)
    usual = _mscale(factor, 1.0)
    if mscale and all_dim:
        usual = _mscale(factor, mscale) / _mscale(factor, all_dim)
    attention_factor = rope.take(POSITIVE, "attention_factor", default=usual)
    rope.left.pop("attn_factor", None)  # see `notices`
    return Yarn(
        factor=factor,
        original_length=rope.take(SIZE, "original_max_position_embeddings", default=max_length),
        beta_fast=float(rope.take(POSITIVE, "beta_fast", default=32.0)),
        beta_slow=float(rope.take(POSITIVE, "beta_slow", default=1.0)),
        attention_factor=float(attention_factor),
        truncate=rope.take(FLAG, "truncate", default=True),
    )


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
