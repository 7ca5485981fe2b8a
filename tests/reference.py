"""A naive float64 Qwen in NumPy: what every faster implementation must agree with.

It reads Hugging Face configs and tensors as they are on disk, knows one sequence and no cache, and
shares no code with qwen_jax. tests/test_reference.py compares it with the original implementations.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches NumPy, and so safetensors, bfloat16
import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]


def reference_logits(
    config: dict[str, Any],
    tensors: Tensors,
    ids: list[int],
    prompt_length: int | None = None,
    stored: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> np.ndarray:
    """Logits [T V] after every token of `ids`, in float64.

    The first `prompt_length` of them (default: all) were the prompt, whose length fixes the dynamic
    NTK base of Qwen v1 for the rest of the generation. `stored` is what a cache makes of keys and
    of values [T K H] before attention reads them.
    """
    weight = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    model = {"qwen": _first, "qwen2": _modern, "qwen3": _modern}[config["model_type"]]
    return model(config, weight, np.asarray(ids), prompt_length or len(ids), stored)


def greedy(config: dict[str, Any], tensors: Tensors, ids: list[int], n: int) -> list[int]:
    """`ids` and the `n` most likely tokens after them, one at a time."""
    prompt_length, ids = len(ids), list(ids)
    for _ in range(n):
        logits = reference_logits(config, tensors, ids, prompt_length)
        ids.append(int(logits[-1].argmax()))
    return ids


# --- Qwen v1 ----------------------------------------------------------------------------------
def _first(
    config: dict[str, Any],
    weight: dict[str, np.ndarray],
    ids: np.ndarray,
    prompt_length: int,
    stored: Callable[..., Any],
) -> np.ndarray:
    c = _first_sizes(config)
    inv_freq = _first_inv_freq(config, c["head_dim"], prompt_length)
    scale = np.ones(len(ids))
    if config.get("use_logn_attn", True):
        length = np.arange(1, len(ids) + 1)  # the keys that each query may see
        scale = np.maximum(np.log(length) / np.log(config["seq_length"]), 1.0)

    x = weight["transformer.wte.weight"][ids]
    for i in range(c["layers"]):
        h = f"transformer.h.{i}."
        y = _rms_norm(x, weight[h + "ln_1.weight"], c["eps"])
        qkv = y @ weight[h + "attn.c_attn.weight"].T + weight[h + "attn.c_attn.bias"]
        q, k, v = (_heads(part, c["head_dim"]) for part in np.split(qkv, 3, axis=-1))
        q, k = _rotate(q, inv_freq), _rotate(k, inv_freq)
        y = _attention(q * scale[:, None, None], stored(k), stored(v))
        x = x + y @ weight[h + "attn.c_proj.weight"].T
        y = _rms_norm(x, weight[h + "ln_2.weight"], c["eps"])
        y = (y @ weight[h + "mlp.w1.weight"].T) * _silu(y @ weight[h + "mlp.w2.weight"].T)
        x = x + y @ weight[h + "mlp.c_proj.weight"].T
    x = _rms_norm(x, weight["transformer.ln_f.weight"], c["eps"])
    return x @ weight["lm_head.weight"].T


def _first_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Both dialects: Qwen-7B of August 2023 spelt its sizes as GPT-2 does."""
    either = lambda new, old: config[new] if new in config else config[old]
    heads = either("num_attention_heads", "n_head")
    width = either("hidden_size", "n_embd")
    return {
        "width": width,
        "layers": either("num_hidden_layers", "n_layer"),
        "mlp": either("intermediate_size", "ffn_hidden_size") // 2,
        "vocab": config.get("padded_vocab_size", config["vocab_size"]),
        "head_dim": config.get("kv_channels", width // heads),
        "eps": config["layer_norm_epsilon"],
    }


def _first_inv_freq(config: dict[str, Any], head_dim: int, prompt_length: int) -> np.ndarray:
    base = config["rotary_emb_base"]
    if config.get("use_dynamic_ntk", True):
        doublings = math.ceil(math.log2(prompt_length / config["seq_length"]) + 1)
        alpha = max(2**doublings - 1, 1)
        base = base * alpha ** (head_dim / (head_dim - 2))
    return base ** (-np.arange(0, head_dim, 2) / head_dim)


# --- Qwen1.5, 2, 2.5, 3 -----------------------------------------------------------------------
def _modern(
    config: dict[str, Any],
    weight: dict[str, np.ndarray],
    ids: np.ndarray,
    prompt_length: int,
    stored: Callable[..., Any],
) -> np.ndarray:
    head_dim, eps = _head_dim(config), config["rms_norm_eps"]
    inv_freq, magnitude = _modern_inv_freq(config, head_dim)

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        y = x @ weight[name + ".weight"].T
        return y + weight[name + ".bias"] if name + ".bias" in weight else y

    x = weight["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        h = f"model.layers.{i}."
        y = _rms_norm(x, weight[h + "input_layernorm.weight"], eps)
        q, k, v = (_heads(linear(h + f"self_attn.{p}_proj", y), head_dim) for p in "qkv")
        if config["model_type"] == "qwen3":
            q = _rms_norm(q, weight[h + "self_attn.q_norm.weight"], eps)
            k = _rms_norm(k, weight[h + "self_attn.k_norm.weight"], eps)
        q, k = magnitude * _rotate(q, inv_freq), magnitude * _rotate(k, inv_freq)
        x = x + linear(h + "self_attn.o_proj", _attention(q, stored(k), stored(v)))
        y = _rms_norm(x, weight[h + "post_attention_layernorm.weight"], eps)
        y = _silu(linear(h + "mlp.gate_proj", y)) * linear(h + "mlp.up_proj", y)
        x = x + linear(h + "mlp.down_proj", y)
    x = _rms_norm(x, weight["model.norm.weight"], eps)
    return x @ weight[_head_name(config)].T


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _head_name(config: dict[str, Any]) -> str:
    return "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"


def _modern_inv_freq(config: dict[str, Any], head_dim: int) -> tuple[np.ndarray, float]:
    """Angles per position, and what YaRN (arXiv 2309.00071) multiplies cosines and sines with."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = rope.get("rope_theta") or config["rope_theta"]
    inv_freq = base ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        return inv_freq, 1.0
    assert rope.get("rope_type", rope.get("type")) == "yarn", rope

    factor, original = rope["factor"], rope["original_max_position_embeddings"]
    # the (fractional) dimension that turns `rotations` times over the original length
    dimension = lambda turns: (
        head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))
    )
    low = max(math.floor(dimension(rope.get("beta_fast", 32))), 0)
    high = min(math.ceil(dimension(rope.get("beta_slow", 1))), head_dim - 1)
    ramp = (np.arange(head_dim // 2) - low) / (high - low if high > low else 0.001)
    slow = np.clip(ramp, 0, 1)  # 0: fast, kept as it is; 1: slow, stretched by the factor
    magnitude = rope.get("attention_factor") or 0.1 * math.log(factor) + 1
    return inv_freq * (1 - slow) + inv_freq / factor * slow, magnitude


# --- pieces of both ---------------------------------------------------------------------------
def _heads(x: np.ndarray, head_dim: int) -> np.ndarray:
    return x.reshape(len(x), -1, head_dim)  # [T N H]


def _rms_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _rotate(x: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
    """x [T N H]: dimension j and j + H/2 are a point, turned by position * inv_freq[j]."""
    angle = np.arange(len(x))[:, None, None] * inv_freq  # [T 1 H/2]
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention of q [T N H] over k, v [T K H]: query head n reads kv head n // (N/K)."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("TNH,SNH->NTS", q, k) / math.sqrt(q.shape[-1])
    scores[:, ~np.tri(len(q), dtype=bool)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.einsum("NTS,SNH->TNH", p, v).reshape(len(q), -1)


# --- checkpoints ------------------------------------------------------------------------------
def read_checkpoint(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """config.json and the tensors of every shard of a Hugging Face folder."""
    tensors: Tensors = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(shard)
    return json.loads((folder / "config.json").read_text()), tensors


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """A Hugging Face folder with one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def random_checkpoint(config: dict[str, Any], seed: int) -> Tensors:
    """float32 tensors with the family's Hugging Face names, large enough to make logits differ."""
    random = np.random.default_rng(seed)
    shapes = _first_shapes(config) if config["model_type"] == "qwen" else _modern_shapes(config)

    def tensor(name: str, shape: tuple[Any, ...]) -> np.ndarray:
        is_norm = name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
        noise = random.normal(0, 0.2 if is_norm else 0.08, shape)
        return (noise + is_norm).astype(np.float32)

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def _first_shapes(config: dict[str, Any]) -> dict[str, Any]:
    c = _first_sizes(config)
    D, F, V = c["width"], c["mlp"], c["vocab"]
    N = config.get("num_attention_heads", config.get("n_head")) * c["head_dim"]
    block = {
        "ln_1.weight": (D,),
        "attn.c_attn.weight": (3 * N, D),
        "attn.c_attn.bias": (3 * N,),
        "attn.c_proj.weight": (D, N),
        "ln_2.weight": (D,),
        "mlp.w1.weight": (F, D),
        "mlp.w2.weight": (F, D),
        "mlp.c_proj.weight": (D, F),
    }
    return {
        "transformer.wte.weight": (V, D),
        **{f"transformer.h.{i}.{n}": s for i in range(c["layers"]) for n, s in block.items()},
        "transformer.ln_f.weight": (D,),
        "lm_head.weight": (V, D),
    }


def _modern_shapes(config: dict[str, Any]) -> dict[str, Any]:
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    H = _head_dim(config)
    N, K = H * config["num_attention_heads"], H * config["num_key_value_heads"]
    block = {
        "input_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (N, D),
        "self_attn.k_proj.weight": (K, D),
        "self_attn.v_proj.weight": (K, D),
        "self_attn.o_proj.weight": (D, N),
        "post_attention_layernorm.weight": (D,),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }
    if config["model_type"] == "qwen3":
        block |= {"self_attn.q_norm.weight": (H,), "self_attn.k_norm.weight": (H,)}
    else:
        block |= {f"self_attn.{p}_proj.bias": (n,) for p, n in zip("qkv", (N, K, K), strict=True)}
    layers = range(config["num_hidden_layers"])
    shapes = {
        "model.embed_tokens.weight": (V, D),
        **{f"model.layers.{i}.{n}": s for i in layers for n, s in block.items()},
        "model.norm.weight": (D,),
    }
    return shapes | {_head_name(config): (V, D)}
