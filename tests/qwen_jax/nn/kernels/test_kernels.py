"""Both kernels, interpreted, against NumPy; what nothing may read is poison."""

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # who counts races
from jax.experimental.pallas import tpu as pltpu

from qwen_jax.nn import backends
from qwen_jax.nn.backends import Backend
from qwen_jax.nn.kv_cache import Store, store_and_attend
from tests.qwen_jax.nn.kernels.cases import Case, answer, make, only

MORE = int(os.environ.get("QWEN_JAX_KERNEL_CASES", "0"))  # random cases beside the fixed ones
BOUNDS = {"float32": 2e-5, "bfloat16": 2e-2}
KERNELS = ["triton", "mosaic"]
CASES: list[dict[str, Any]] = [
    {"fills": [0, 63, 130]},
    {"fills": [64, 200, 5], "groups": 7, "length": 3, "cache": "int8", "real": [3, 2, 0]},
    {"fills": [60, 190], "length": 9, "groups": 4, "real": [9, 4], "blocks": 3, "turned": True},
    {"fills": [100, 256], "cache": "bfloat16", "dtype": "bfloat16", "own": True},
    {"fills": [62, 7], "length": 2, "groups": 2, "cache": "int8", "turned": True, "norms": True},
]


def run(name: str, case: Case, interpret: Any = True) -> tuple[np.ndarray, list[Any]]:
    y, keys, values = backends.load(name)(*case.arguments(), interpret=interpret)
    return np.asarray(y, np.float32), [keys, values]


def check(name: str, case: Case, asked: dict[str, Any]) -> None:
    """What queries get, and every bit of what is stored but for a scale's last one.

    Keys that the kernel turns first differ by what the order of float32 sums does.
    """
    dtype, exact = asked.get("dtype", "float32"), not asked.get("turned", False)
    y, stores = run(name, case)
    wanted, wanted_stores = answer(case)
    real = ~np.isnan(wanted)
    np.testing.assert_allclose(y[real], wanted[real], rtol=0, atol=BOUNDS[dtype])
    assert np.isfinite(y).all()
    for n, (got, wanted_store) in enumerate(zip(stores, wanted_stores, strict=True)):
        (data, scale), (wanted_data, wanted_scale) = got, wanted_store
        off = 0.0 if exact or n else 1.0 if scale is not None else BOUNDS[dtype]
        plain = lambda x: np.asarray(x, np.float32)
        np.testing.assert_allclose(plain(data), plain(wanted_data), rtol=0, atol=off)
        if scale is not None:
            rtol = 2e-7 if off == 0 else BOUNDS[dtype]
            np.testing.assert_allclose(np.asarray(scale), wanted_scale, rtol=rtol)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("asked", CASES, ids=lambda asked: f"{asked['fills']}")
def test_a_kernel_is_the_reference(name: str, asked: dict[str, Any]) -> None:
    check(name, make(0, **asked), asked)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("seed", range(MORE))
def test_a_kernel_is_the_reference_for_any_call(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    blocks, length = int(random.integers(1, 6)), int(random.choice([1, 1, 2, 5, 16]))
    fills = random.integers(0, 64 * blocks + 1 - length, random.integers(1, 5))
    dtype = str(random.choice(["float32", "bfloat16"]))
    asked: dict[str, Any] = {
        "fills": fills.tolist(),
        "length": length,
        "blocks": blocks,
        "heads": int(random.integers(1, 4)),
        "groups": int(random.integers(1, 9)),
        "size": int(random.choice([16, 32, 64, 128])),
        "cache": str(random.choice([dtype, "int8"])),
        "dtype": dtype,
        "own": bool(random.integers(2)),
        "real": random.integers(0, length + 1, len(fills)).tolist(),
        "turned": bool(random.integers(2)),
        "norms": bool(random.integers(2)),
    }
    asked["turned"] |= asked["norms"]
    check(name, make(seed, **asked), asked)


@pytest.mark.parametrize("cache", ["float32", "int8"])
def test_the_twin_is_the_reference(cache: str) -> None:
    """XLA's form takes the same call."""
    case = make(1, [60, 130], length=2, groups=2, cache=cache, turned=True, norms=True)
    stores = (Store(*case.keys), Store(*case.values))
    y, *_ = store_and_attend(case.asked, *stores, case.table, case.ends)
    np.testing.assert_allclose(np.asarray(y), answer(case)[0], atol=2e-5)


PIECES: list[dict[str, Any]] = [
    {"fills": [0, 70], "length": 70, "groups": 2, "real": [70, 9], "blocks": 3, "turned": True},
    {"fills": [61, 5], "length": 20, "cache": "int8", "real": [0, 20], "own": True, "blocks": 5},
    {"fills": [490, 8], "length": 40, "cache": "int8", "groups": 2, "blocks": 9},
]


def pieces(name: str, case: Case, interpret: Any = True) -> tuple[np.ndarray, list[Any]]:
    """Many queries a row, by the kernel that comes after all is stored."""
    over = Backend(name, interpret=interpret).over(None)
    stores = (Store(*case.keys), Store(*case.values))
    y, *stored = store_and_attend(case.asked, *stores, case.table, case.ends, over)
    return np.asarray(y, np.float32), [(store.data, store.scale) for store in stored]


def check_pieces(name: str, case: Case, bound: float) -> None:
    (y, _), wanted = pieces(name, case), answer(case)[0]
    real = ~np.isnan(wanted)
    np.testing.assert_allclose(y[real], wanted[real], rtol=0, atol=bound)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("asked", PIECES, ids=lambda asked: f"{asked['fills']}")
def test_pieces_of_texts_are_the_reference(name: str, asked: dict[str, Any]) -> None:
    check_pieces(name, make(0, **asked), BOUNDS["float32"])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("seed", range(MORE))
def test_any_pieces_of_texts_are_the_reference(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    length, blocks = int(random.integers(17, 300)), int(random.integers(1, 20))
    blocks = max(blocks, -(-length // 64))
    fills = random.integers(0, 64 * blocks + 1 - length, random.integers(1, 4))
    dtype = str(random.choice(["float32", "bfloat16"]))
    asked: dict[str, Any] = {
        "fills": fills.tolist(),
        "length": length,
        "blocks": blocks,
        "heads": int(random.choice([1, 2, 3, 16])),
        "groups": int(random.integers(1, 9)),
        "size": int(random.choice([16, 32, 128])),
        "cache": str(random.choice([dtype, "int8"])),
        "dtype": dtype,
        "own": bool(random.integers(2)),
        "real": random.integers(0, length + 1, len(fills)).tolist(),
    }
    check_pieces(name, make(seed, **asked), BOUNDS[dtype])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("many", [False, True], ids=["step", "pieces"])
@pytest.mark.parametrize("cache", ["int8", "bfloat16"] if MORE else ["int8"])
def test_a_row_is_its_own(name: str, many: bool, cache: str) -> None:
    """No bit of it depends on neighbours, on where pages lie, on room, or on tokens a call."""
    how: dict[str, Any] = {"groups": 3, "cache": cache, "turned": True, "norms": True}
    how |= {"length": 40, "blocks": 10} if many else {"length": 2}
    case = make(2, [70, 500 if many else 130, 9], dtype="bfloat16", **how)
    call = functools.partial(pieces if many else run, name)
    together, (keys, values) = call(case)
    alone, _ = call(only(case, 1))
    np.testing.assert_array_equal(alone[0], together[1])

    order = np.random.default_rng(0).permutation(len(case.keys[0]))
    move = lambda pair: tuple(None if x is None else x[np.argsort(order)] for x in pair)
    moved: Any = {"keys": move(case.keys), "values": move(case.values)}
    long = jnp.pad(order[case.table], ((0, 0), (0, 5)))
    moved = dataclasses.replace(case, table=long, **moved)
    np.testing.assert_array_equal(call(moved)[0], together)

    joined = lambda x: jnp.moveaxis(x[case.table], 1, 2).reshape(*case.ends.shape, x.shape[1], -1)
    join = lambda x: joined(x).reshape(*joined(x).shape[:2], -1, *x.shape[3:])
    own: Any = {"keys": jax.tree.map(join, case.keys), "values": jax.tree.map(join, case.values)}
    own = dataclasses.replace(case, table=None, **own)  # a row's pages as one
    np.testing.assert_array_equal(call(own)[0], together)

    def tokens(which: slice) -> Any:
        cut = lambda x: x[:, which]
        where = jax.tree.map(cut, case.asked.where)
        return dataclasses.replace(case.asked, qkv=cut(case.asked.qkv), where=where)

    cut, length = (17, 40) if many else (1, 2)
    first = dataclasses.replace(case, asked=tokens(slice(0, cut)), ends=case.ends - (length - cut))
    one, (own_keys, own_values) = call(first)
    rest = tokens(slice(cut, length))
    two, stores = call(dataclasses.replace(case, asked=rest, keys=own_keys, values=own_values))
    np.testing.assert_array_equal(np.concatenate([one, two], axis=1), together)
    for got, wanted in zip(jax.tree.leaves(stores), jax.tree.leaves((keys, values)), strict=True):
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(wanted, np.float32))


@pytest.mark.parametrize("many", [False, True], ids=["step", "pieces"])
@pytest.mark.parametrize("cache", ["float32", "int8"])
def test_no_race_on_a_tpu(many: bool, cache: str) -> None:
    """With memory that is NaN before it is written, and copies that come as late as they may."""
    case = make(3, [60, 128], length=8, heads=1, size=16, cache=cache, blocks=3)
    how = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    y, _ = (pieces if many else run)("mosaic", case, how)
    np.testing.assert_allclose(y, answer(case)[0], atol=2e-5)
    races = interpret_pallas_call.races
    assert races is not None
    assert not races.races_found


@pytest.mark.parametrize(("name", "platform"), [("triton", "cuda"), ("mosaic", "tpu")])
@pytest.mark.parametrize("many", [False, True], ids=["step", "pieces"])
@pytest.mark.parametrize("cache", ["bfloat16", "int8"])
def test_a_kernel_lowers(name: str, platform: str, many: bool, cache: str) -> None:
    case = make(0, [5, 70], length=2, groups=4, size=128, cache=cache, dtype="bfloat16")
    form: Any = functools.partial(backends.load(name), interpret=False)
    arguments, count = case.arguments(), {"triton": 2, "mosaic": 1}[name]
    if many:
        form, count = functools.partial(backends.load_prefill(name), interpret=False), 1
        places = (case.keys, case.values, case.table, case.asked.where.positions, case.ends)
        arguments = (case.asked.qkv[..., :-2, :], *places)
    checks = [jax.export.DisabledSafetyCheck.custom_call(x) for x in _TARGETS]
    exported = jax.export.export(jax.jit(form), platforms=[platform], disabled_checks=checks)
    text = exported(*arguments).mlir_module()
    assert sum(text.count(f"@{target}") for target in _TARGETS) == count


_TARGETS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "triton_kernel_call")
