"""What was published under Qwen's name or made from it: read as it was meant, or refused in words.

The numbers are those of the folders on the hub; none of their text is here.
"""

from pathlib import Path
from typing import Any

import pytest

from convert.modules import find_packing
from qwen_jax.config import Config, notices
from qwen_jax.decoding.generation_config import Defaults

NOWHERE = Path("a folder that is not there")
END_OF_TEXT, IM_END = 151643, 151645
QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": END_OF_TEXT,
    "eos_token_id": IM_END,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3: dict[str, Any] = {
    **QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 262144,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "rope_theta": 5000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "transformers_version": "4.51.0",
    "vocab_size": 151936,
}
V1: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
    "attn_dropout_prob": 0.0,
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": True,
    "fp32": False,
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 27392,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 8192,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 2048,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "torch_dtype": "float16",
    "transformers_version": "4.35.0",
    "use_cache": True,
    "use_cache_kernel": False,
    "use_cache_quantization": False,
    "use_dynamic_ntk": True,
    "use_flash_attn": False,
    "use_logn_attn": True,
    "vocab_size": 152064,
}
BASE: dict[str, Any] = {
    "bos_token_id": END_OF_TEXT,
    "do_sample": False,
    "eos_token_id": END_OF_TEXT,
}
BASE |= {"max_new_tokens": 2048, "transformers_version": "4.37.0"}
CHAT: dict[str, Any] = {"bos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT, "do_sample": True}
CHAT |= {"eos_token_id": [IM_END, END_OF_TEXT], "transformers_version": "4.37.0"}
CHAT |= {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
DEEPSEEK: dict[str, Any] = {
    "_from_model_config": True,
    "bos_token_id": 151646,
    "eos_token_id": END_OF_TEXT,
}
DEEPSEEK |= {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
SMALL: dict[str, Any] = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
SMALL |= {"num_hidden_layers": 24, "num_key_value_heads": 2, "tie_word_embeddings": True}
EMBEDDING: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
}
EMBEDDING |= {"num_hidden_layers": 28, "max_window_layers": 28, "vocab_size": 151669}
DUAL: dict[str, Any] = {
    "chunk_size": 262144,
    "local_size": 8192,
    "original_max_position_embeddings": 262144,
}
YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}

ROUND: dict[str, Any] = {
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "data_type": "int",
    "iters": 200,
}
ROUND |= {"autoround_version": "0.5.1", "low_gpu_mem_usage": True, "nsamples": 512, "seqlen": 2048}
ROUND |= {"enable_quanted_input": True, "enable_minmax_tuning": True, "lr": 0.005, "amp": True}

# name -> config.json, generation_config.json, fields of Config and of Defaults that are wanted
READ: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Qwen2.5-0.5B": (
        QWEN2 | SMALL | {"use_mrope": False, "vocab_size": 151936, "sliding_window": 32768},
        BASE,
        {"head_dim": 64, "max_new_tokens": 2048, "eos_ids": ((END_OF_TEXT,),)},
    ),
    "Qwen2.5-7B-Instruct": (QWEN2, CHAT, {"eos_ids": ((IM_END,), (END_OF_TEXT,)), "yarn": None}),
    "Qwen2.5-7B-Instruct, long": (QWEN2 | {"rope_scaling": YARN}, CHAT, {"max_length": 131072}),
    "Qwen2.5-7B-Instruct-1M": (
        QWEN2
        | {"max_position_embeddings": 1010000, "rope_theta": 1e7, "sliding_window": 32768}
        | {"dual_chunk_attention_config": DUAL},
        CHAT,
        {"max_length": 262144, "rope_base": 1e7},
    ),
    "Qwen2.5-Math-7B": (
        QWEN2 | {"max_position_embeddings": 4096, "rope_theta": 10000, "use_mrope": False},
        BASE,
        {"rope_base": 10000.0, "max_length": 4096},
    ),
    "Qwen2.5-Coder-7B": (QWEN2 | {"eos_token_id": END_OF_TEXT}, BASE, {"max_length": 32768}),
    "QwQ-32B": (
        QWEN2
        | {"hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 8}
        | {"num_hidden_layers": 64, "max_window_layers": 64, "max_position_embeddings": 40960},
        CHAT | {"repetition_penalty": 1.0, "temperature": 0.6, "top_k": 40, "top_p": 0.95},
        {"head_dim": 128, "max_length": 40960},
    ),
    "Qwen3-4B-Instruct-2507": (QWEN3, CHAT, {"max_length": 262144, "rope_base": 5e6}),
    "Qwen3-4B-Thinking-2507": (QWEN3, CHAT | {"temperature": 0.6, "top_p": 0.95}, {"tied": True}),
    "Qwen3-8B-Base": (QWEN3 | {"tie_word_embeddings": False}, BASE, {"tied": False}),
    "Qwen3-Embedding-0.6B": (QWEN3 | EMBEDDING, BASE, {"vocab": 151669, "head_dim": 128}),
    "Qwen3-Reranker-0.6B": (
        QWEN3 | EMBEDDING | {"max_position_embeddings": 40960, "rope_theta": 1000000},
        CHAT,
        {"vocab": 151669},
    ),
    "DeepSeek-R1-Distill-Qwen-7B": (
        QWEN2
        | {"bos_token_id": 151646, "eos_token_id": END_OF_TEXT, "use_mrope": False}
        | {"max_position_embeddings": 131072, "rope_theta": 10000, "sliding_window": 4096},
        DEEPSEEK,
        {"eos_ids": ((END_OF_TEXT,),), "max_length": 131072},
    ),
    "DeepSeek-R1-0528-Qwen3-8B": (
        QWEN3
        | {"max_position_embeddings": 131072, "rope_theta": 1000000, "tie_word_embeddings": False}
        | {"rope_scaling": YARN | {"attn_factor": 0.8782488562869419}},
        DEEPSEEK,
        {"max_length": 131072},
    ),
    "Qwen1.5-7B-Chat": (
        QWEN2
        | {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
        | {"num_hidden_layers": 32, "num_key_value_heads": 32, "sliding_window": 32768},
        CHAT,
        {"kv_heads": 32},
    ),
    "unsloth/Qwen2.5-7B-Instruct": (
        QWEN2 | {"pad_token_id": 151654, "unsloth_fixed": True, "unsloth_version": "2025.3.1"},
        CHAT | {"pad_token_id": 151654, "max_length": 32768},
        {"max_length": 32768},
    ),
    "a fine-tune by LLaMA-Factory": (
        QWEN2
        | {"_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "_attn_implementation_autoset": True}
        | {"use_cache": False, "sliding_window": None, "rope_scaling": None},
        CHAT,
        {"rope_base": 1e6},
    ),
    "a fine-tune by axolotl": (
        QWEN2
        | {"gradient_checkpointing": True, "_attn_implementation": "flash_attention_2"}
        | {"dual_chunk_attention_config": None, "use_cache": False, "pruned_heads": None},
        {"do_sample": False, "temperature": 0.0, "top_p": None, "transformers_version": "4.51.3"},
        {"eos_ids": ((IM_END,),)},
    ),
    "a classifier's bookkeeping": (
        QWEN2
        | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": None}
        | {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {},
        {"rope_base": 5e5, "eos_ids": ((IM_END,),)},
    ),
    "saved by transformers 5": (
        {k: v for k, v in QWEN3.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
        | {"dtype": "bfloat16", "layer_types": ["full_attention"] * 36, "pad_token_id": None}
        | {"rope_parameters": {"rope_theta": 5000000, "rope_type": "default"}}
        | {"chunk_size_feed_forward": 0, "output_attentions": False, "return_dict": True},
        CHAT | {"transformers_version": "5.0.0"},
        {"rope_base": 5e6},
    ),
    "mlx-community, bf16": (QWEN3, CHAT, {"tied": True}),
    "windows that no layer has": (
        QWEN2 | {"use_sliding_window": True, "max_window_layers": 28, "sliding_window": 4096},
        CHAT,
        {"layers": 28},
    ),
    "Qwen-14B-Chat, cache in int8": (
        V1 | {"use_cache_quantization": True, "use_cache_kernel": True},
        {"chat_format": "chatml", "eos_token_id": END_OF_TEXT, "max_window_size": 6144},
        {"cache_dtype": "int8", "ntk_length": 2048},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_read(name: str) -> None:
    content, generation, wanted = READ[name]
    config, defaults = Config.from_hf(content), Defaults.from_hf(generation, content)
    found = vars(defaults) | vars(config)
    assert {key: found[key] for key in wanted} == wanted
    assert find_packing(NOWHERE, content) is None


def test_what_is_read_otherwise_is_said() -> None:
    said = {name: notices(content) for name, (content, _, _) in READ.items()}
    assert [name for name, lines in said.items() if lines] == [
        "Qwen2.5-7B-Instruct-1M",
        "DeepSeek-R1-0528-Qwen3-8B",
    ]
    assert "texts of up to 262144 tokens" in said["Qwen2.5-7B-Instruct-1M"][0]


MLX: dict[str, Any] = {"group_size": 64, "bits": 4, "mode": "affine"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mlx-community, 4 bits": (
        QWEN3 | {"quantization": MLX, "quantization_config": MLX},
        "quantization is what MLX packs weights with, .*take the model that it was made from",
    ),
    "llm-compressor": (
        QWEN3 | {"quantization_config": {"quant_method": "compressed-tensors", "bits": 4}},
        "quant_method 'compressed-tensors'; 'gptq' and 'awq' can be read",
    ),
    "Qwen3-4B-FP8": (
        QWEN3 | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        "quant_method 'fp8'.*the model that is not quantised",
    ),
    "unsloth, bnb-4bit": (
        QWEN2 | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quant_method 'bitsandbytes'",
    ),
    "AutoRound for llm-compressor": (
        QWEN3
        | {"quantization_config": {"quant_method": "auto-round", "packing_format": "auto_round:x"}},
        "quant_method 'auto-round' in the packing_format 'auto_round:x'",
    ),
    "a number for a packing": (QWEN3 | {"quantization_config": 1}, "it is 1, expected an object"),
    "gte-Qwen2-7B-instruct": (QWEN2 | {"is_causal": False}, "is_causal is False; only True"),
    "a drafter": (QWEN3 | {"partial_rotary_factor": 0.5}, r"unknown keys \['partial_rotary_factor"),
    "Qwen3-30B-A3B": (QWEN3 | {"model_type": "qwen3_moe"}, "model_type 'qwen3_moe'; .* dense"),
    "Qwen2.5-VL": (QWEN2 | {"model_type": "qwen2_5_vl"}, "model_type 'qwen2_5_vl'"),
    "windows": (QWEN2 | {"use_sliding_window": True, "max_window_layers": 21}, "use_sliding_wi"),
    "a switch that is on": (QWEN2 | {"use_mrope": True}, r"unknown keys \['use_mrope'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    content, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        assert (Config.from_hf(content), find_packing(NOWHERE, content)) is None
