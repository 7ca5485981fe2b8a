"""One table: Hugging Face's tensor names and our leaves.

A leaf is named by its path in the model, "blocks.0.attn.qkv.kernel". It is filled by one
tensor or by several parts; a Part says which views of the two hold the same numbers, so the
same table reads a checkpoint and writes it back.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qwen_jax.config import Config

HEAD = "lm_head.weight"
Pair = tuple[np.ndarray, np.ndarray]
Views = Callable[[np.ndarray, np.ndarray], Pair]


@dataclass(frozen=True)
class TensorView:
    """`views(leaf, tensor)` are two views of one shape: copy either to the other."""

    tensor: str
    shape: tuple[int, ...]
    leaf: str
    views: Views

    def of(self, leaf: np.ndarray) -> np.ndarray:
        """The tensor in a leaf; a view where it may be one."""
        view, _ = self.views(leaf, np.empty((self.shape[0], *leaf.shape[1:]), leaf.dtype))
        return view.reshape(self.shape[0], *leaf.shape[1:])

    def rows(self, size: int) -> np.ndarray:
        """For each row of the tensor, its place among the leaf's `size` rows."""
        return self.of(np.arange(size)[:, None])[:, 0]


def tensor_views(config: Config, model_type: str) -> Iterator[TensorView]:
    """Every tensor of a checkpoint, in the order of the network. model_type as in config.json."""
    c = config
    names = _V1 if model_type == "qwen" else _LATER
    shapes = {
        "norm": (c.width,),
        "head_norm": (c.head_dim,),
        "vocab": (c.vocab, c.width),
        "out": (c.width, c.heads * c.head_dim),
        "up": (c.mlp, c.width),
        "down": (c.width, c.mlp),
        "qkv": ((c.heads + 2 * c.kv_heads) * c.head_dim, c.width),
        "q": (c.heads * c.head_dim, c.width),
        "kv": (c.kv_heads * c.head_dim, c.width),
    }
    for template, leaf, kind, views in names:
        absent = (
            (kind == "head_norm" and not c.qk_norm)
            or (leaf.endswith("bias") and not c.qkv_bias)
            or (leaf.startswith("head") and c.tied)
        )
        if absent:
            continue
        shape = shapes[kind][:1] if leaf.endswith("bias") else shapes[kind]
        for layer in range(c.layers) if "{i}" in template else (0,):
            yield TensorView(
                template.replace("{i}", str(layer)),
                shape,
                leaf.replace("{i}", str(layer)),
                functools.partial(views, c),
            )


def as_stored(views: Iterable[TensorView], stored: Collection[str]) -> dict[str, TensorView]:
    """Views by their tensors' names in a checkpoint: those without a head may leave "model." out.

    So the embedding models that were published are stored.
    """
    made = {view.tensor: view for view in views}
    bare = {name.removeprefix("model."): view for name, view in made.items()}
    if made.keys() & stored or not bare.keys() & stored:
        return made
    return {name: dataclasses.replace(view, tensor=name) for name, view in bare.items()}


def tied_head(views: Mapping[str, TensorView]) -> TensorView:
    """Of a checkpoint that stores the head although it repeats the embedding."""
    embed = next(view for view in views.values() if view.leaf == "embed")
    return dataclasses.replace(embed, tensor=HEAD)


def is_harmless(tensor: str) -> bool:
    """Tensors some checkpoints carry that are no weights: tables rebuilt from the config."""
    return bool(re.search(r"\.(attn\.masked_bias|rotary_emb\.inv_freq|attn\.bias)$", tensor))


def _whole(config: Config, leaf: np.ndarray, tensor: np.ndarray) -> Pair:
    return leaf, tensor


def _fused(config: Config, leaf: np.ndarray, tensor: np.ndarray) -> Pair:
    """c_attn: rows [3, N, H] there, [N, 3, H] here."""
    n, h = config.heads, config.head_dim
    return leaf.reshape(n, 3, h, -1).swapaxes(0, 1), tensor.reshape(3, n, h, -1)


def _query(config: Config, leaf: np.ndarray, tensor: np.ndarray) -> Pair:
    return _cut(config, leaf, tensor, slice(0, config.groups))


def _key(config: Config, leaf: np.ndarray, tensor: np.ndarray) -> Pair:
    return _cut(config, leaf, tensor, slice(config.groups, config.groups + 1))


def _value(config: Config, leaf: np.ndarray, tensor: np.ndarray) -> Pair:
    return _cut(config, leaf, tensor, slice(config.groups + 1, config.groups + 2))


def _cut(config: Config, leaf: np.ndarray, tensor: np.ndarray, which: slice) -> Pair:
    """Some of the G + 2 head-sized runs of rows of every key/value head."""
    cut = leaf.reshape(config.kv_heads, config.groups + 2, config.head_dim, -1)[:, which]
    return cut, tensor.reshape(cut.shape)


_BLOCK = "blocks.{i}."
_V1 = [
    ("transformer.wte.weight", "embed", "vocab", _whole),
    ("transformer.h.{i}.ln_1.weight", _BLOCK + "attn_norm.scale", "norm", _whole),
    ("transformer.h.{i}.attn.c_attn.weight", _BLOCK + "attn.qkv.kernel", "qkv", _fused),
    ("transformer.h.{i}.attn.c_attn.bias", _BLOCK + "attn.qkv.bias", "qkv", _fused),
    ("transformer.h.{i}.attn.c_proj.weight", _BLOCK + "attn.out.kernel", "out", _whole),
    ("transformer.h.{i}.ln_2.weight", _BLOCK + "mlp_norm.scale", "norm", _whole),
    # w2 goes through the SiLU
    ("transformer.h.{i}.mlp.w2.weight", _BLOCK + "mlp.gate.kernel", "up", _whole),
    ("transformer.h.{i}.mlp.w1.weight", _BLOCK + "mlp.up.kernel", "up", _whole),
    ("transformer.h.{i}.mlp.c_proj.weight", _BLOCK + "mlp.down.kernel", "down", _whole),
    ("transformer.ln_f.weight", "norm.scale", "norm", _whole),
    (HEAD, "head.kernel", "vocab", _whole),
]
_LAYER = "model.layers.{i}."
_LATER = [
    ("model.embed_tokens.weight", "embed", "vocab", _whole),
    (_LAYER + "input_layernorm.weight", _BLOCK + "attn_norm.scale", "norm", _whole),
    (_LAYER + "self_attn.q_proj.weight", _BLOCK + "attn.qkv.kernel", "q", _query),
    (_LAYER + "self_attn.k_proj.weight", _BLOCK + "attn.qkv.kernel", "kv", _key),
    (_LAYER + "self_attn.v_proj.weight", _BLOCK + "attn.qkv.kernel", "kv", _value),
    (_LAYER + "self_attn.q_proj.bias", _BLOCK + "attn.qkv.bias", "q", _query),
    (_LAYER + "self_attn.k_proj.bias", _BLOCK + "attn.qkv.bias", "kv", _key),
    (_LAYER + "self_attn.v_proj.bias", _BLOCK + "attn.qkv.bias", "kv", _value),
    (_LAYER + "self_attn.o_proj.weight", _BLOCK + "attn.out.kernel", "out", _whole),
    (_LAYER + "self_attn.q_norm.weight", _BLOCK + "attn.q_norm.scale", "head_norm", _whole),
    (_LAYER + "self_attn.k_norm.weight", _BLOCK + "attn.k_norm.scale", "head_norm", _whole),
    (_LAYER + "post_attention_layernorm.weight", _BLOCK + "mlp_norm.scale", "norm", _whole),
    (_LAYER + "mlp.gate_proj.weight", _BLOCK + "mlp.gate.kernel", "up", _whole),
    (_LAYER + "mlp.up_proj.weight", _BLOCK + "mlp.up.kernel", "up", _whole),
    (_LAYER + "mlp.down_proj.weight", _BLOCK + "mlp.down.kernel", "down", _whole),
    ("model.norm.weight", "norm.scale", "norm", _whole),
    (HEAD, "head.kernel", "vocab", _whole),
]
