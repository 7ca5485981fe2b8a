"""What attention is asked: a layer's product for queries, keys and values, as it comes.

A cache makes of it what attends: by `split`, or in a kernel that norms and turns by itself.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import jax
from jax import Array

from qwen_jax.nn import rope
from qwen_jax.nn.rope import Where


class Norm(Protocol):
    """Of a head; see model.RMSNorm."""

    scale: Array  # [H]
    eps: float

    def __call__(self, x: Array) -> Array: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Projected:
    """A key/value head's queries, its key and its value lie together."""

    qkv: Array  # [B T K G+2 H]
    where: Where
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    def split(self) -> tuple[Array, Array, Array]:
        """Queries [B T N H], keys and values [B T K H]: normed, turned and scaled."""
        q, k, v = parts(self.qkv)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rope.rotate(q, *self.where.angles), rope.rotate(k, *self.where.angles)
        if self.where.query_scale is not None:
            q = q * self.where.query_scale.astype(q.dtype)
        return q, k, v

    def with_product(self, qkv: Array) -> "Projected":
        return replace(self, qkv=qkv)


def parts(qkv: Array) -> tuple[Array, Array, Array]:
    """[B T K G+2 H] -> [B T N H] and twice [B T K H]."""
    q, k, v = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
    return q.reshape(*q.shape[:2], -1, q.shape[-1]), k, v
