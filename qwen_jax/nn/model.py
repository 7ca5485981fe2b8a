"""The network: every dense Qwen, from the original to Qwen3, as one Flax model.

Axis letters: B batch, T query length, S key length, N query heads, K key/value heads,
G = N // K, H head size, D model width, F mlp width, V vocabulary, L layers.

This file knows arithmetic only. Other weight formats and adapters take Linear's place;
cache layouts, kernels and meshes are behind `cache.attend`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qwen_jax.config import Config
from qwen_jax.nn.projected import Projected
from qwen_jax.nn.rope import Where
from qwen_jax.nn.sums import matmul, row_sum

LINEAR = "linear"  # marks what linear layers give: a training may keep that and nothing else
Attended = tuple[Array, Any]  # what comes out, and the cache it leaves


class AttentionCache(Protocol):
    """What attention needs of a cache; see qwen_jax.nn.kv_cache."""

    def attend(self, layer: int | Array, asked: Projected) -> Attended: ...


class LinearLayer(nnx.Module):
    """Whatever does a linear layer's work: plain, quantised, or with adapters beside it."""

    def __call__(self, x: Array) -> Array:
        return checkpoint_name(self.float32(x).astype(x.dtype), LINEAR)

    def float32(self, x: Array) -> Array:
        """x [... in] -> [... out], before it is rounded to x's type."""
        raise NotImplementedError


class Assets(Protocol):
    """What `load` finds beside the arrays, qwen_jax.assets; no arithmetic reads it."""

    @property
    def folder(self) -> Path: ...
    @property
    def model_type(self) -> str: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def defaults(self) -> Any: ...


@nnx.dataclass
class Linear(LinearLayer):
    """y = x @ kernel.T + bias; kernel [out, in] as Hugging Face stores it."""

    kernel: Array = nnx.data()
    bias: Array | None = nnx.data()

    def float32(self, x: Array) -> Array:
        y = matmul(x, self.kernel)
        return y if self.bias is None else y + self.bias


@nnx.dataclass
class RMSNorm(nnx.Module):
    scale: Array = nnx.data()
    eps: float = nnx.static()

    def __call__(self, x: Array) -> Array:
        y = x.astype(jnp.float32)  # the mean of squares loses bf16's few digits
        mean = row_sum(y * y)[..., None] / x.shape[-1]
        y = y * jax.lax.rsqrt(mean + self.eps)
        return y.astype(x.dtype) * self.scale

    def after(self, x: Array, y: Array) -> tuple[Array, Array]:
        """x with what a layer adds to it, and the norm of that."""
        x = x + y
        return x, self(x)


@nnx.dataclass
class Attention(nnx.Module):
    """Queries, keys and values come from one product whose rows are ordered [K, G + 2, H].

    A key/value head's queries, its key and its value lie together, so splitting the rows over
    devices splits heads, and grouped and plain attention read alike.
    """

    qkv: Linear
    out: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None

    @jax.named_scope("attention")
    def __call__(
        self, x: Array, where: Where, cache: AttentionCache, layer: int | Array, config: Config
    ) -> Attended:
        y, cache = self.mix(self.qkv(x), where, cache, layer, config)
        return self.out(y), cache

    def mix(
        self, qkv: Array, where: Where, cache: AttentionCache, layer: int | Array, config: Config
    ) -> Attended:
        """What `out` gets, from what `qkv` gives."""
        batch, length, _ = qkv.shape
        qkv = qkv.reshape(batch, length, config.kv_heads, -1, config.head_dim)
        y, cache = cache.attend(layer, Projected(qkv, where, self.q_norm, self.k_norm))
        return y.reshape(batch, length, -1), cache


@nnx.dataclass
class MLP(nnx.Module):
    gate: Linear
    up: Linear
    down: Linear

    @jax.named_scope("mlp")
    def __call__(self, x: Array) -> Array:
        return self.down(self.hidden(x))

    def hidden(self, x: Array) -> Array:
        """What `down` gets."""
        return jax.nn.silu(self.gate(x)) * self.up(x)


@nnx.dataclass
class Block(nnx.Module):
    attn_norm: RMSNorm
    attn: Attention
    mlp_norm: RMSNorm
    mlp: MLP

    def __call__(
        self, x: Array, where: Where, cache: AttentionCache, layer: int | Array, config: Config
    ) -> Attended:
        y, cache = self.attn(self.attn_norm(x), where, cache, layer, config)
        x, y = self.mlp_norm.after(x, y)
        return x + self.mlp(y), cache


@nnx.dataclass
class Qwen(nnx.Module):
    """The parameters, and the forward pass over them. `params` everywhere in the public surface."""

    embed: Array = nnx.data()  # [V D]
    blocks: tuple[Block, ...] = nnx.data()
    norm: RMSNorm
    head: Linear | None  # None: logits reuse `embed`
    config: Config = nnx.static()
    assets: Assets | None = nnx.static()  # None: a bare network

    def __call__(
        self, tokens: Array, positions: Array, prompt_lengths: Array, cache: AttentionCache
    ) -> Attended:
        """tokens and positions [B T], prompt_lengths [B] -> hidden states [B T D] and the cache.

        `logits` turns hidden states into scores; a prefill asks it for the last one only.
        """
        where = Where.of(self.config, positions, prompt_lengths)
        x, cache = self.through(self.embedded(tokens), where, cache)
        return self.norm(x), cache

    @jax.named_scope("embedding")
    def embedded(self, tokens: Array) -> Array:
        """tokens [B T] -> what the first block gets [B T D].

        Kept inside the decode loop: XLA would widen a whole bf16 table before it.
        """
        table, tokens = jax.lax.optimization_barrier((self.embed, tokens))
        return table[tokens]

    def through(self, x: Array, where: Where, cache: AttentionCache) -> Attended:
        """All blocks: x [B T D] -> [B T D], not normed yet, and the cache."""
        for layer, block in enumerate(self.blocks):
            x = jax.lax.optimization_barrier(x)  # a TPU would keep all layers' sums to the end
            with jax.named_scope(f"block_{layer}"):
                x, cache = block(x, where, cache, layer, self.config)
        return x, cache

    @jax.named_scope("head")
    def logits(self, x: Array) -> Array:
        """Hidden states [... D] -> float32 [... V]."""
        return matmul(x, self.embed) if self.head is None else self.head.float32(x)


# --- one description of the tree, for initialising, sharding and restoring -------------------
Shape = tuple[int, ...]
Axes = tuple[str | None, ...]
Leaf = Callable[[Shape, Axes, str], Any]


def build(config: Config, leaf: Leaf) -> Qwen:
    """A Qwen whose every array is leaf(shape, logical axes, kind).

    kind is "normal", "residual" (a projection back into the residual stream), "ones" or "zeros".
    """
    c = config
    qkv_rows = c.kv_heads * (c.groups + 2) * c.head_dim

    def norm(size: int, axis: str | None) -> RMSNorm:
        return RMSNorm(leaf((size,), (axis,), "ones"), c.norm_eps)

    def linear(
        out: int, out_axis: str, inp: int, in_axis: str, kind: str = "normal", bias: bool = False
    ) -> Linear:
        kernel = leaf((out, inp), (out_axis, in_axis), kind)
        return Linear(kernel, leaf((out,), (out_axis,), "zeros") if bias else None)

    def block() -> Block:
        attention = Attention(
            qkv=linear(qkv_rows, "heads", c.width, "width", bias=c.qkv_bias),
            out=linear(c.width, "width", c.heads * c.head_dim, "heads", "residual"),
            q_norm=norm(c.head_dim, None) if c.qk_norm else None,
            k_norm=norm(c.head_dim, None) if c.qk_norm else None,
        )
        mlp = MLP(
            gate=linear(c.mlp, "mlp", c.width, "width"),
            up=linear(c.mlp, "mlp", c.width, "width"),
            down=linear(c.width, "width", c.mlp, "mlp", "residual"),
        )
        return Block(norm(c.width, None), attention, norm(c.width, None), mlp)

    return Qwen(
        embed=leaf((c.vocab, c.width), ("vocab", "width"), "normal"),
        blocks=tuple(block() for _ in range(c.layers)),
        norm=norm(c.width, None),
        head=None if c.tied else linear(c.vocab, "vocab", c.width, "width"),
        config=c,
        assets=None,
    )


def init(config: Config, key: Array, dtype: Any = jnp.float32) -> Qwen:
    """Fresh weights as the original starts from: normal, residual projections / sqrt(2L)."""
    std = config.init_std
    deviation = {"normal": std, "residual": std / (2 * config.layers) ** 0.5}
    keys = iter(jax.random.split(key, 16 * config.layers + 16))

    def leaf(shape: Shape, _: Axes, kind: str) -> Array:
        if kind in ("ones", "zeros"):
            return jnp.full(shape, float(kind == "ones"), dtype)
        return (jax.random.normal(next(keys), shape) * deviation[kind]).astype(dtype)

    return build(config, leaf)
