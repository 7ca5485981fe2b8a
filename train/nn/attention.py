"""Causal attention within the samples of packed rows, and which form of it runs where.

| devices | form | memory beside queries, keys, values and the result |
|---|---|---|
| TPU | `splash`: JAX's Pallas kernel | nothing |
| NVIDIA GPU, 16-bit numbers | `cudnn`: cuDNN's flash attention | a mask [B 2048 S] |
| all others | `blocks`: XLA's products | scores [B N 128 S] |

None keeps scores for the backward pass. cuDNN knows no segments, hence its mask, and no float32.
Rows of more than 2048 tokens make `blocks` score a sixteenth of their queries at once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from qwen_jax.nn import sharding
from qwen_jax.nn.heads import Heads

ATTENDED = "attended"  # marks what a backward pass needs of a forward one, but for cuDNN's
MASKED = -1e30
_QUERIES = 128  # scored at once on a CPU: they and their scores stay in its caches
_PIECES = 16  # of a long row at most, for each is a program of its own
_CUDNN_QUERIES = 2048
_CUDNN = "dot_product_attention_fwd_wrapper"  # what JAX calls its forward pass

Form = Callable[[Array, Array, Array, Array], Array]


def kept(primitive: Any, *args: Any, **how: Any) -> bool:
    """A policy of jax.checkpoint: attention is not computed again."""
    named: bool = jax.checkpoint_policies.save_only_these_names(ATTENDED)(primitive, *args, **how)
    return named or primitive.name == _CUDNN


def attend(q: Array, k: Array, v: Array, segments: Array, mesh: Mesh | None) -> Array:
    """q [B T N H], k and v [B T K H], segments [B T] -> [B T N H].

    A query sees the keys before it, and itself, that are in its segment. On a mesh every device
    has its own rows and heads, and nothing is sent.
    """
    if mesh is None:
        return form(jax.default_backend(), q.dtype)(q, k, v, segments)
    heads = Heads.of(k.shape[2], q.shape[2] // k.shape[2], mesh)
    q, k, v = heads.spread(q, k, v)
    if mesh.shape["tensor"] > 1:  # or a backward pass would send them once more
        q, k, v = (checkpoint_name(x, ATTENDED) for x in (q, k, v))
    q = q.reshape(*q.shape[:2], -1, q.shape[-1])
    cut = P(*sharding.spec(mesh, ("slot", None, "heads"), (len(k), 1, heads.places)))
    rows = cut[0]
    mine = form(mesh.devices.flat[0].platform, q.dtype)
    given = cut, cut, cut, P(rows)
    mapped = jax.shard_map(mine, mesh=mesh, in_specs=given, out_specs=cut, check_vma=False)
    y = mapped(q, k, v, segments)
    return heads.collect(y.reshape(*y.shape[:2], heads.places, -1, y.shape[-1]))


def form(platform: str, dtype: jnp.dtype) -> Form:
    """The form that runs on a platform's devices; one that cannot there raises."""
    if platform == "tpu":
        return splash
    return cudnn if platform in ("gpu", "cuda") and dtype.itemsize == 2 else blocks


# --- XLA ------------------------------------------------------------------------------------------
@jax.custom_vjp
def blocks(q: Array, k: Array, v: Array, segments: Array) -> Array:
    """A block of queries at a time, with the keys that one of them sees."""
    return _forward(q, k, v, segments)[0]


def _forward(q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, tuple[Array, ...]]:
    q, k, v = _heads_first(q, k), _heads_first(k, k), _heads_first(v, k)
    parts, normalisers = [], []
    for start, stop in _pieces(segments.shape[1], _QUERIES):
        scores = _scores(q[:, :, start:stop], k[:, :, :stop], segments, start)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        y = _product("BKTGS,BKSH->BKTGH", weights.astype(v.dtype), v[:, :, :stop, 0])
        parts.append((y / total).astype(q.dtype))
        normalisers.append(top + jnp.log(total))
    kept = (jnp.concatenate(parts, axis=2), jnp.concatenate(normalisers, axis=2))
    y, normaliser = (checkpoint_name(x, ATTENDED) for x in kept)
    return _heads_last(y), (q, k, v, segments, y, normaliser)


def _backward(residuals: tuple[Array, ...], dy: Array) -> tuple[Array | None, ...]:
    """Scores once more, and from the kept normaliser the weights (arXiv 2205.14135, section B)."""
    q, k, v, segments, y, normaliser = residuals
    dy = _heads_first(dy, _heads_last(k))
    along = jnp.sum(y.astype(jnp.float32) * dy, axis=-1, keepdims=True)
    dqs = []
    dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for start, stop in _pieces(segments.shape[1], _QUERIES):
        mine = slice(start, stop)
        keys, values = k[:, :, :stop, 0], v[:, :, :stop, 0]
        scores = _scores(q[:, :, mine], k[:, :, :stop], segments, start)
        weights = jnp.exp(scores - normaliser[:, :, mine])
        ds = _product("BKTGH,BKSH->BKTGS", dy[:, :, mine], values) - along[:, :, mine]
        ds = (ds * weights * q.shape[-1] ** -0.5).astype(q.dtype)
        dqs.append(_product("BKTGS,BKSH->BKTGH", ds, keys))
        over = "BKTGS,BKTGH->BKSH"
        dk = dk.at[:, :, :stop, 0].add(_product(over, ds, q[:, :, mine]))
        dv = dv.at[:, :, :stop, 0].add(_product(over, weights.astype(q.dtype), dy[:, :, mine]))
    gradients = (jnp.concatenate(dqs, axis=2), dk, dv)
    return *(_heads_last(x.astype(q.dtype)) for x in gradients), None


blocks.defvjp(_forward, _backward)


def _scores(q: Array, k: Array, segments: Array, start: int) -> Array:
    """q [B K T G H], k [B K S 1 H] -> [B K T G S] float32, of the queries from `start` on."""
    scores = _product("BKTGH,BKSH->BKTGS", q, k[:, :, :, 0]) * q.shape[-1] ** -0.5
    seen = _seen(segments, start, k.shape[2])
    return jnp.where(seen[:, None, :, None], scores, MASKED)


def _product(axes: str, x: Array, y: Array) -> Array:
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _heads_first(x: Array, k: Array) -> Array:
    """[B T N H] -> [B K T G H]: batched products of what lies together, 2 x faster on a CPU."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], k.shape[2], -1, x.shape[-1]), 1, 2)


def _heads_last(x: Array) -> Array:
    """[B K T G H] -> [B T N H]."""
    x = jnp.moveaxis(x, 2, 1)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


# --- kernels --------------------------------------------------------------------------------------
def cudnn(q: Array, k: Array, v: Array, segments: Array) -> Array:
    """cuDNN's flash attention; it wants an even length where a mask is given."""
    length = segments.shape[1]
    q, k, v, segments = _lengthened(2, q, k, v, segments)
    parts = [
        jax.nn.dot_product_attention(
            q[:, start:stop], k[:, :stop], v[:, :stop],
            mask=_seen(segments, start, stop)[:, None],
            is_causal=start == 0,  # the mask says so already; this skips what is above it
            implementation="cudnn",
        )
        for start, stop in _pieces(segments.shape[1], _CUDNN_QUERIES)
    ]  # fmt: skip
    return jnp.concatenate(parts, axis=1)[:, :length]


def splash(q: Array, k: Array, v: Array, segments: Array, interpret: bool = False) -> Array:
    """JAX's Pallas kernel for TPUs, which takes lengths that are multiples of 128.

    interpret: run it anywhere, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # takes half a second

    length, (heads, size) = segments.shape[1], q.shape[2:]
    q = (q * jnp.float32(size**-0.5)).astype(q.dtype)
    q, k, v, segments = _lengthened(128, q, k, v, segments)
    whole = segments.shape[1]
    block = next(n for n in (512, 384, 256, 128) if whole % n == 0)
    kinds = ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{kind}": block for kind in kinds}
    attend = pallas.make_splash_mha(
        pallas.MultiHeadMask([pallas.CausalMask((whole, whole))] * heads),
        block_sizes=pallas.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    y = jax.vmap(attend)(q, k, v, pallas.SegmentIds(segments, segments))
    return jnp.moveaxis(y, 1, 2)[:, :length]


# --- rows and their pieces ------------------------------------------------------------------------
def _pieces(length: int, queries: int) -> list[tuple[int, int]]:
    """Start and stop of blocks of so many queries; of more where there would be too many blocks."""
    queries = max(queries, -(-length // _PIECES))
    return [(start, min(start + queries, length)) for start in range(0, length, queries)]


def _seen(segments: Array, start: int, stop: int) -> Array:
    """[B T S]: which of the keys up to `stop` the queries from `start` to there see."""
    keys = jnp.arange(stop)
    same = segments[:, start:stop, None] == segments[:, None, :stop]
    return same & (keys <= keys[start:, None])


def _lengthened(multiple: int, *arrays: Array) -> list[Array]:
    """Arrays [B T ...] with zeros, a sample of their own, up to a multiple of T."""
    missing = -arrays[0].shape[1] % multiple
    return [jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2)) for x in arrays]
