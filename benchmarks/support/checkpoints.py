"""The same random weights for every contestant: a Hugging Face folder, ours, and GGUF files."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from qwen_jax.config import Config
from qwen_jax.storage.hf_names import tensor_views

LENGTH = 2048  # tokens the checkpoints say they can hold


@dataclass(frozen=True)
class Shape:
    """As many heads as key/value heads, so that v1 and later models can be of one size."""

    layers: int
    width: int
    heads: int
    mlp: int
    vocab: int


HALF_BILLION = Shape(layers=24, width=1024, heads=16, mlp=2816, vocab=151_936)
TINY = Shape(layers=2, width=128, heads=4, mlp=256, vocab=1024)


def hf_config(shape: Shape, model_type: str) -> dict[str, Any]:
    """A config.json of model_type "qwen2", or "qwen", the original."""
    made = {
        "model_type": model_type,
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "tie_word_embeddings": False,
        "max_position_embeddings": LENGTH,
    }
    if model_type == "qwen":
        return made | {
            "architectures": ["QWenLMHeadModel"],
            "intermediate_size": 2 * shape.mlp,
            "seq_length": LENGTH,
            "layer_norm_epsilon": 1e-6,
            "rotary_emb_base": 10000.0,
            "use_dynamic_ntk": True,
            "use_logn_attn": True,
        }
    return made | {
        "architectures": ["Qwen2ForCausalLM"],
        "intermediate_size": shape.mlp,
        "num_key_value_heads": shape.heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    }


def write_hf(folder: Path, shape: Shape, model_type: str) -> Path:
    """A bfloat16 checkpoint of seeded noise. Returns the folder."""
    content = hf_config(shape, model_type)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content | {"dtype": "bfloat16"}))
    # no token ends an answer, so that all contestants write equally many
    ends = {"do_sample": False, "eos_token_id": None}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    random = np.random.default_rng(0)
    tensors = {}
    for part in tensor_views(Config.from_hf(content), model_type):
        noise = random.standard_normal(part.shape, np.float32) * np.float32(0.02)
        is_norm = len(part.shape) == 1 and not part.tensor.endswith("bias")
        tensors[part.tensor] = (noise + np.float32(is_norm)).astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_native(hf: Path, out: Path, method: str | None = None) -> Path:
    """method: "int8", or "int4" in groups of 128, with an int8 head; default, as it is."""
    import convert  # imports jax, which contestants without it must not

    groups = {"int8": None, "int4": 128}
    settings = (
        None if method is None else convert.QuantizeOptions(method, groups[method], True, True)
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return convert.to_native(hf, out, quantize=settings)


def write_gguf(hf: Path, out: Path, kind: str) -> Path:
    """The checkpoint for llama.cpp. kind: "F16", or "Q8_0", 8-bit blocks of 32 weights."""
    import gguf

    content = json.loads((hf / "config.json").read_text())
    model_type, layers = content["model_type"], content["num_hidden_layers"]
    writer = gguf.GGUFWriter(out, model_type)
    writer.add_block_count(layers)
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(content["hidden_size"])
    writer.add_feed_forward_length(content["intermediate_size"])
    writer.add_head_count(content["num_attention_heads"])
    writer.add_head_count_kv(content["num_attention_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(content["hidden_size"] // content["num_attention_heads"])
    _add_vocabulary(writer, content["vocab_size"])
    architectures = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architectures[model_type], layers)
    matrix = gguf.GGMLQuantizationType[kind]
    for name, tensor in load_file(hf / "model.safetensors").items():
        kept = matrix if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor.astype(np.float32), kept)
        theirs = names.get_name(name, (".weight", ".bias"))
        assert theirs is not None, name
        writer.add_tensor(theirs, data, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add_vocabulary(writer: Any, size: int) -> None:
    """Names for the ids: llama.cpp loads no model without, though all prompts here are ids."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{id}" for id in range(size)])
    writer.add_token_types([1] * size)
    writer.add_token_merges(["t 0"])
