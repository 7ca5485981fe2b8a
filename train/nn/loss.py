"""Cross-entropy without the logits: [tokens, vocabulary] never exists whole.

A chunk of tokens is scored and its gradient taken at once: what multiplies the loss later is one
number, and scoring again in the backward pass would cost another product with the whole head.
A scale is part of that gradient from the start: in float16 it would come too late behind it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from qwen_jax.data.examples import IGNORED
from qwen_jax.nn.sums import Outer, matmul, outer

CHUNK = 512  # tokens a device scores at once
Pair = tuple[Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    head: Array,
    x: Array,
    targets: Array,
    scale: Array | float,
    chunks: int,
    outer: Outer = outer,
) -> Array:
    """`scale` times the sum of -log p(target) over the targets that are not IGNORED, float32.

    head [V D], x [B T D], targets [B T]; T is cut into so many chunks. outer: see sums.matmul.
    """
    return _forward(head, x, targets, scale, chunks, outer)[0]


def _forward(
    head: Array, x: Array, targets: Array, scale: Array | float, chunks: int, outer: Outer
) -> tuple[Array, Pair]:
    def chunk(carry: Pair, piece: Pair) -> tuple[Pair, Array]:
        total, gradient = carry
        x, targets = piece
        logits, pull = jax.vjp(lambda x, head: matmul(x, head, outer), x, head)
        top = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        hit = jnp.arange(len(head)) == targets[..., None]
        learnt = (targets != IGNORED)[..., None]
        of_target = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], -1)
        total += jnp.sum(jnp.where(learnt, top - of_target, 0))
        dx, dhead = pull(jnp.where(learnt, scale * (jnp.exp(logits - top) - hit), 0))
        return (total, gradient + dhead), dx  # dead, and left out, where the head is not trained

    def cut(whole: Array) -> Array:
        size = whole.shape[1] // chunks
        return jnp.moveaxis(whole.reshape(-1, chunks, size, *whole.shape[2:]), 1, 0)

    start = jnp.zeros((), jnp.float32), jnp.zeros(head.shape, jnp.float32)
    (total, dhead), dx = jax.lax.scan(chunk, start, (cut(x), cut(targets)))
    return scale * total, (jnp.moveaxis(dx, 0, 1).reshape(x.shape), dhead.astype(head.dtype))


def _backward(
    chunks: int, outer: Outer, gradients: Pair, more: Array
) -> tuple[Array, Array, None, None]:
    dx, dhead = gradients
    return (more * dhead).astype(dhead.dtype), (more * dx).astype(dx.dtype), None, None


cross_entropy.defvjp(_forward, _backward)


def chunks(rows: int, length: int) -> int:
    """Into how many pieces to cut the length so that a device scores at most CHUNK tokens."""
    enough = (n for n in range(1, length) if length % n == 0 and rows * length <= n * CHUNK)
    return next(enough, length)
