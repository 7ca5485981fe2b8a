"""Attention in training: every form against a naive one, and what one sample sees of another."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.nn.sharding import make_mesh
from train.nn import attention

FORMS = [attention.blocks, functools.partial(attention.splash, interpret=True)]
attend: Callable[..., Array] = attention.attend
SHAPES = {  # heads, kv heads, head size, the lengths of a row's samples, padding at its end
    "plain": (4, 4, 16, (9, 1, 30), 0),
    "grouped": (4, 2, 16, (20, 3), 2),
    "several blocks": (2, 1, 8, (100, 129, 60), 11),
}


def inputs(heads: int, kv_heads: int, size: int, lengths: tuple[Any, ...], padding: int) -> Any:
    """q, k, v, segments and a gradient of the output; two rows, the second one sample."""
    numbers = np.repeat(np.arange(len(lengths)) + 1, lengths)
    segments = np.stack([np.pad(numbers, (0, padding)), np.ones(sum(lengths) + padding, int)])
    draw = np.random.default_rng(0).normal
    count = segments.shape[1]
    q, dy = draw(size=(2, 2, count, heads, size))
    k, v = draw(size=(2, 2, count, kv_heads, size))
    return q, k, v, segments.astype(np.int32), dy


def naive(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, segments: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One query at a time in float64 -> y, and dq, dk, dv by the chain rule."""
    y, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    scale, groups = q.shape[-1] ** -0.5, q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(*q.shape[:3]):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        keys, values = k[b, seen, n // groups], v[b, seen, n // groups]
        weights = np.exp(keys @ q[b, t, n] * scale)
        weights /= weights.sum()
        y[b, t, n] = weights @ values
        dscores = weights * (values @ dy[b, t, n] - y[b, t, n] @ dy[b, t, n]) * scale
        dq[b, t, n] = dscores @ keys
        for s, weight, d in zip(seen, weights, dscores, strict=True):
            dv[b, s, n // groups] += weight * dy[b, t, n]
            dk[b, s, n // groups] += d * q[b, t, n]
    return y, dq, dk, dv


def run(
    form: Any,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    segments: np.ndarray,
    dy: np.ndarray,
    dtype: Any = jnp.float32,
) -> list[np.ndarray]:
    @jax.jit
    def both(q: Array, k: Array, v: Array, dy: Array) -> tuple[Array, Array, Array, Array]:
        y, pull = jax.vjp(lambda *x: form(*x, jnp.asarray(segments)), q, k, v)
        return y, *pull(dy)

    return [
        np.asarray(x, np.float64) for x in both(*(jnp.asarray(x, dtype) for x in (q, k, v, dy)))
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS, ids=["blocks", "splash"])
def test_values_and_gradients(form: Any, shape: str) -> None:
    given = inputs(*SHAPES[shape])
    for got, want in zip(run(form, *given), naive(*given), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("form", FORMS, ids=["blocks", "splash"])
def test_no_sample_sees_another(form: Any) -> None:
    """Bit for bit: values and gradients outside a sample stay as they are, whatever is in it."""
    q, k, v, segments, dy = inputs(4, 2, 16, (70, 100, 40), 7)
    changed = segments == 2
    changed[1] = False
    q2, k2, v2 = (np.where(changed[..., None, None], 1e3 - 7 * x, x) for x in (q, k, v))
    other_dy = np.where(changed[..., None, None], -dy, dy)
    before = run(form, q, k, v, segments, dy)
    after = run(form, q2, k2, v2, segments, other_dy)
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x[~changed], y[~changed])
        assert (x[changed] != y[changed]).any()


@pytest.mark.parametrize("form", FORMS, ids=["blocks", "splash"])
def test_sixteen_bit_inputs(form: Any) -> None:
    """Products of bf16 in float32: an error of bf16's rounding, no more."""
    q, k, v, segments, dy = inputs(4, 2, 16, (40, 90), 3)
    q16, k16, v16 = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (q, k, v))
    wanted = naive(q16, k16, v16, segments, dy)
    found = run(form, q, k, v, segments, dy, jnp.bfloat16)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-2 * np.abs(want).max())


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 4}, {"data": 2, "tensor": 4}], ids=str)
def test_each_device_has_its_rows_and_heads(sizes: dict[str, int]) -> None:
    q, k, v, segments, _ = inputs(8, 4, 16, (20, 30), 0)
    mesh = make_mesh(**sizes)
    place = lambda *axes: NamedSharding(mesh, P(*axes))
    rows = ("data", "fsdp")
    put: Any = [
        jax.device_put(jnp.asarray(x, jnp.float32), place(rows, None, "tensor")) for x in (q, k, v)
    ]
    ids = jax.device_put(segments, place(rows))
    program = jax.jit(lambda *x: attend(*x, mesh)).lower(*put, ids).compile()
    assert not re.search(r"all-|collective-|reduce-scatter", str(program.as_text()))
    want = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), segments, None)
    np.testing.assert_allclose(program(*put, ids), want, atol=1e-6)


def test_key_heads_that_do_not_divide() -> None:
    """Two on four devices, each there twice: their gradients are the sums of both."""
    q, k, v, segments, dy = inputs(6, 2, 16, (20, 30), 0)
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v, dy)]

    def run(mesh: Any) -> Any:
        def both(q: Array, k: Array, v: Array, dy: Array) -> Any:
            y, pull = jax.vjp(lambda *x: attend(*x, segments, mesh), q, k, v)
            return y, pull(dy)

        return jax.jit(both)(*arrays)

    got, want = run(make_mesh(data=2, tensor=4)), run(None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), got, want)


def test_nothing_is_kept_for_the_backward_pass_but_what_the_scores_come_from() -> None:
    q, k, v, segments, _ = inputs(4, 2, 16, (600,), 0)
    _, pull = jax.vjp(lambda *x: attention.blocks(*x, segments), *map(jnp.asarray, (q, k, v)))
    kept = {x.shape for x in jax.tree.leaves(pull) if hasattr(x, "shape")}
    assert not any(shape.count(600) > 1 or 128 in shape for shape in kept), kept


@pytest.mark.parametrize(
    ("platform", "dtype", "wanted"),
    [
        ("tpu", "bfloat16", "splash"),
        ("tpu", "float32", "splash"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", "float16", "cudnn"),
        ("gpu", "float32", "blocks"),
        ("cpu", "bfloat16", "blocks"),
    ],
)
def test_which_form_runs_where(platform: str, dtype: str, wanted: str) -> None:
    assert attention.form(platform, jnp.dtype(dtype)).__name__ == wanted


@pytest.mark.parametrize(
    ("platform", "target"), [("tpu", "tpu_custom_call"), ("cuda", "__cudnn$fmha")]
)
def test_lowers(platform: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels, forward and backward, for devices that are not there."""
    # what jax asks of the installed cuDNN before it is used
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91200
    )
    form = attention.form(platform, jnp.dtype("bfloat16"))
    shape = lambda n: jax.ShapeDtypeStruct((2, 301, n, 64), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((2, 301), jnp.int32)

    def text(form: Any) -> str:
        loss = lambda *x: jnp.sum(form(*x).astype(jnp.float32) ** 2)
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(shape(4), shape(2), shape(2), segments)
        return str(traced.lower(lowering_platforms=(platform,)).as_text())

    bare = text(form)
    assert bare.count(target) >= 2
    assert not re.search(r"2x4x\d+x\d+x\d+xf32|2x4x30\dx30\dx", bare), "scores of every head"
    again = text(jax.checkpoint(form))
    assert text(jax.checkpoint(form, policy=attention.kept)).count(target) == bare.count(target)
    assert again.count(target) > bare.count(target)


def test_blocks_are_not_computed_again_where_attention_is_kept() -> None:
    q, k, v, segments, _ = inputs(4, 2, 16, (300,), 0)

    def products(form: Any) -> int:
        loss = lambda *x: jnp.sum(form(*x, segments) ** 2)
        return str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, v)).count("dot_general")

    bare, again = products(attention.blocks), products(jax.checkpoint(attention.blocks))
    assert products(jax.checkpoint(attention.blocks, policy=attention.kept)) == bare < again
