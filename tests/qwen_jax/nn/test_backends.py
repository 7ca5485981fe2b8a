"""Which form of attention runs where, and the same form on a mesh."""

import re
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from qwen_jax.config import Config
from qwen_jax.decoding.completion import complete
from qwen_jax.nn import backends
from qwen_jax.nn.backends import XLA, Backend
from qwen_jax.nn.kv_cache import Cache, Store
from qwen_jax.nn.model import init
from qwen_jax.nn.sharding import make_mesh
from tests.qwen_jax.networks import GREEDY, QWEN2
from tests.qwen_jax.nn.kernels.cases import make

SMALL = Config.from_hf(QWEN2 | {"max_position_embeddings": 64})
LARGE = replace(SMALL, head_dim=128)


@pytest.mark.parametrize(
    ("platform", "page", "wanted"),
    [
        *(
            ("cpu", 64, "llvm"),
            ("cpu", 100, "llvm"),
            ("cuda", 64, "triton"),
            ("gpu", 128, "triton"),
        ),
        *(("tpu", 64, "mosaic"), ("gpu", 100, "xla"), ("tpu", 32, "xla")),
    ],
)
def test_a_platform_has_its_own(platform: str, page: int, wanted: str) -> None:
    assert backends.choose(None, platform, LARGE, page).name == wanted
    assert backends.choose("xla", platform, LARGE, page) == XLA


@pytest.mark.parametrize(
    ("name", "platform", "page", "message"),
    [
        ("triton", "cpu", 64, "attention triton runs on gpu, this is cpu; here can run: llvm, xla"),
        ("mosaic", "gpu", 64, "attention mosaic runs on tpu, this is gpu; here can run: triton, x"),
        ("llvm", "gpu", 64, "attention llvm runs on cpu, this is gpu; here can run: triton, xla"),
        ("triton", "gpu", 100, "pages of 64 tokens or multiples of that, got 100"),
        ("flash", "gpu", 64, "attention is 'flash', wanted one of triton, mosaic, llvm, xla"),
    ],
)
def test_what_cannot_run_says_what_can(name: str, platform: str, page: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        backends.choose(name, platform, LARGE, page)


def test_heads_that_a_kernel_does_not_take() -> None:
    with pytest.raises(ValueError, match="takes heads of 128 or multiples of that, got 64"):
        backends.choose("mosaic", "tpu", replace(LARGE, head_dim=64), 64)
    assert backends.choose(None, "tpu", replace(LARGE, head_dim=64), 64) == XLA


def test_pages_that_slots_on_several_devices_share() -> None:
    mesh = make_mesh(data=2, tensor=4)
    with pytest.raises(ValueError, match="no pages that slots on several devices share"):
        backends.choose("triton", "gpu", LARGE, 64, mesh, shared=True)
    assert backends.choose(None, "gpu", LARGE, 64, mesh, shared=True) == Backend("xla", mesh)
    assert backends.choose("triton", "gpu", LARGE, 64, mesh).mesh is mesh


@pytest.mark.parametrize("name", ["triton", "mosaic"])
def test_answers_are_those_of_xla(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole steps with a kernel in them."""
    params = init(SMALL, jax.random.key(0))
    prompts = [[*range(5, 55)], [8]]
    ask = lambda: complete(params, prompts, GREEDY, max_new_tokens=3, draft_tokens=0)
    wanted = ask()
    called: list[str] = []

    def choose(*_: object) -> Backend:
        called.append(name)
        return Backend(name, interpret=True)

    monkeypatch.setattr(backends, "choose", choose)
    assert ask() == wanted
    assert called == [name]


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
def test_a_cpus_own_gives_the_answers_of_xla(cache_dtype: Any) -> None:
    """A batch whose prompts take several rows, and drafts that are verified."""
    params = init(replace(SMALL, head_dim=64), jax.random.key(0))
    prompts = [[*range(5, 55)], [8], [7, 8, 9] * 5]
    how: dict[str, Any] = {"max_new_tokens": 8, "draft_tokens": 2, "cache_dtype": cache_dtype}
    own, xla = (complete(params, prompts, GREEDY, attention=a, **how) for a in ("llvm", "xla"))
    assert [answer.tokens for answer in own] == [answer.tokens for answer in xla]


@pytest.mark.parametrize(("apart", "length"), [(True, 2), (False, 2), (True, backends.MOST + 1)])
def test_a_kernel_takes_few_tokens_of_texts_apart(
    apart: bool, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt's rows are parts of one text, and read what others of them store."""
    case = make(5, [3], length=length, size=16, blocks=1, own=True)
    cache = Cache(
        (Store(*case.keys),), (Store(*case.values),), backend=Backend("triton", interpret=True)
    )
    called: list[str] = []

    def load(name: str) -> backends.Form:
        called.append(name)
        return lambda asked, keys, values, *_, interpret: (asked.qkv[..., :-2, :], keys, values)

    monkeypatch.setattr(backends, "load", load)
    cache.select(None, case.ends, apart).attend(0, case.asked)
    assert called == (["triton"] if apart and length == 2 else [])


@pytest.mark.parametrize(("own", "apart"), [(True, True), (False, True), (False, False)])
def test_a_mesh_changes_no_bit(own: bool, apart: bool) -> None:
    """Slots over data where each has its pages, heads over tensor; apart: as when decoding."""
    how: dict[str, Any] = {"turned": True, "norms": True}
    case = make(4, [70, 9], heads=2, groups=2, size=16, blocks=2, own=own, **how)
    mesh = make_mesh(data=2 if own else 1, tensor=2, devices=jax.devices()[: 4 if own else 2])

    def run(mesh: object) -> list[np.ndarray]:
        stores = (Store(*case.keys),), (Store(*case.values),)
        backend = Backend("triton", mesh, interpret=True)  # type: ignore[arg-type]
        cache = Cache(*stores, table=case.table, ends=case.ends, backend=backend, apart=apart)
        y, cache = jax.jit(lambda cache, asked: cache.attend(0, asked))(cache, case.asked)
        return [np.asarray(x) for x in (y, cache.keys[0].data, cache.values[0].data)]

    for got, wanted in zip(run(mesh), run(None), strict=True):
        np.testing.assert_array_equal(got, wanted)
