"""Every kernel beside XLA's form of the same call; on a CPU they are interpreted."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.kept import Case, SkippedError
from benchmarks.accelerator.sizes import Size
from benchmarks.accelerator.weights import seconds
from qwen_jax.nn import attention, backends, quant
from qwen_jax.nn.kernels import layers, mosaic_quant, triton_int4
from qwen_jax.nn.kv_cache import Store, store_and_attend
from qwen_jax.nn.model import MLP, Linear, RMSNorm
from tests.qwen_jax.nn.kernels import cases

TOLERANCE = 2e-2  # of the largest number, where that is more than one
CALLS: dict[str, dict[str, Any]] = {  # of attention while tokens are generated
    "bfloat16, one token": {"cache": "bfloat16"},
    "bfloat16, groups of 7, 4 tokens": {"cache": "bfloat16", "groups": 7, "length": 4},
    "int8 cache, one token": {"cache": "int8"},
    "int8 cache, groups of 4": {"cache": "int8", "groups": 4, "norms": True},
}
ROWS = 8  # of a product
Call = Callable[[], Any]


def kernels(size: Size) -> dict[str, Case]:
    made: dict[str, Callable[[Size], tuple[Call, Call]]] = {
        f"{name}, {call}": functools.partial(_decode, name, call)
        for name in ("triton", "mosaic")
        for call in size.calls
    }
    made |= {"triton, norm": _norm, "triton, gate and up": _gated}
    for name in ("triton", "mosaic"):
        made[f"{name}, a prompt"] = functools.partial(_prompt, name)
        made[f"{name}, int4"] = functools.partial(_int4, name)
    return {name: functools.partial(_beside, size, name, both) for name, both in made.items()}


def _beside(size: Size, name: str, both: Callable[[Size], tuple[Call, Call]]) -> dict[str, Any]:
    platform, form = _platform(), name.split(",")[0]
    if platform not in (*backends.PLATFORMS[form], "cpu"):
        runs = " and ".join(backends.PLATFORMS[form])
        raise SkippedError(f"{form} runs on {runs}, this is {platform}")
    run, ask = both(size)
    first, wanted = jax.tree.leaves(run()), jax.tree.leaves(ask())[0].astype(jnp.float32)
    scale = max(1.0, float(jnp.abs(wanted).max()))
    far = float(jnp.abs(first[0].astype(jnp.float32) - wanted).max()) / scale
    same = all(_equal(first, jax.tree.leaves(run())) for _ in range(size.same))
    began = time.perf_counter()
    jax.block_until_ready([run() for _ in range(size.same)])
    return {
        "difference": round(far, 5),
        "allowed": TOLERANCE,
        "repeats": size.same,
        "same_bits": same,
        "seconds": round((time.perf_counter() - began) / size.same, 6),
        "seconds_xla": min(seconds(ask, size.repeats)),
        "interpreted": platform == "cpu",
        "good": same and far <= TOLERANCE,
    }


def _decode(name: str, call: str, size: Size) -> tuple[Call, Call]:
    case = _case(size, **CALLS[call])
    kernel = functools.partial(backends.load(name), interpret=_platform() == "cpu")
    stores = Store(*case.keys), Store(*case.values)
    ask = lambda: _twin(case.asked, *stores, case.table, case.ends)
    return lambda: kernel(*case.arguments()), ask


def _prompt(name: str, size: Size) -> tuple[Call, Call]:
    """A piece that is stored already."""
    case = _case(size, length=24 if size.heads == 1 else 512, cache="bfloat16")
    (_, key, value), where = _stored(case), case.asked.where
    query = case.asked.qkv[..., :-2, :]
    places = case.table, where.positions, case.ends
    pairs = (key.data, key.scale), (value.data, value.scale)
    kernel = functools.partial(backends.load_prefill(name), interpret=_platform() == "cpu")
    real = (where.positions < case.ends[:, None])[:, :, None, None, None]
    shown = lambda y: jnp.where(real, y, 0)
    twin = jax.jit(attention.attend)
    return lambda: shown(kernel(query, *pairs, *places)), lambda: shown(
        twin(query, key, value, *places)
    )


def _norm(size: Size) -> tuple[Call, Call]:
    width = 512 * size.heads
    x, y, scale = _draw(ROWS, width), _draw(ROWS, width), _draw(width)
    run = functools.partial(layers.normed, x, y, scale, eps=1e-6, interpret=_platform() == "cpu")
    twin = jax.jit(RMSNorm(scale, 1e-6).after)
    return lambda: run()[::-1], lambda: twin(x, y)[::-1]


def _gated(size: Size) -> tuple[Call, Call]:
    width, mlp = 512 * size.heads, 1376 * size.heads
    x, gate, up = _draw(ROWS, width), _draw(mlp, width) * 0.02, _draw(mlp + 1, width)[1:] * 0.02
    run = functools.partial(layers.gated, x, gate, up, interpret=_platform() == "cpu")
    twin = jax.jit(MLP(Linear(gate, None), Linear(up, None), Linear(up, None)).hidden)
    return run, lambda: twin(x)


def _int4(name: str, size: Size) -> tuple[Call, Call]:
    width, mlp = 512 * size.heads, 1376 * size.heads
    x, linear = _draw(ROWS, width), Linear(_draw(mlp, width) * 0.02, None)
    layer = quant.arrange(quant.quantize(linear, 4, 128, False), {"triton": "gpu"}.get(name, "tpu"))
    kernel = {"triton": triton_int4, "mosaic": mosaic_quant}[name].product
    how = {"interpret": _platform() == "cpu"}
    run = lambda: kernel(x, layer.codes, layer.scales, layer.zeros, None, **how)
    twin = jax.jit(lambda x: layer(x))
    return run, lambda: twin(x)


def _case(size: Size, **call: Any) -> cases.Case:
    room, length = cases.PAGE * size.blocks, call.get("length", 1)
    fills = np.random.default_rng(0).integers(1, room - length - 8, 8 if size.heads > 1 else 2)
    shape: dict[str, Any] = {"heads": size.heads, "size": 128, "blocks": size.blocks}
    how: dict[str, Any] = {"dtype": "bfloat16", "turned": True, **call}
    return cases.make(0, fills.tolist(), **shape, **how)


def _stored(case: cases.Case) -> Any:
    stores = Store(*case.keys), Store(*case.values)
    return _twin(case.asked, *stores, case.table, case.ends)


_twin = jax.jit(store_and_attend)


def _draw(*shape: int) -> jax.Array:
    numbers = np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)
    return jnp.asarray(numbers, jnp.bfloat16)


def _platform() -> str:
    return {"cuda": "gpu", "rocm": "gpu"}.get(jax.default_backend(), jax.default_backend())


def _equal(some: list[Any], others: list[Any]) -> bool:
    """Every bit; NaN is where nothing was ever stored."""
    bits = lambda x: np.asarray(x).view(np.uint8)
    return all(np.array_equal(bits(x), bits(y)) for x, y in zip(some, others, strict=True))
