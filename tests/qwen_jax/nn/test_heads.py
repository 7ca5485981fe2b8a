"""Heads that the devices do not divide: the same answers, and a device holds only its part."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import load, save
from qwen_jax.config import Config
from qwen_jax.decoding import decode
from qwen_jax.decoding.completion import complete
from qwen_jax.nn import quant
from qwen_jax.nn.backends import Backend
from qwen_jax.nn.heads import Heads
from qwen_jax.nn.kv_cache import Cache
from qwen_jax.nn.model import Linear, Qwen, init
from qwen_jax.nn.sharding import make_mesh, shardings
from qwen_jax.nn.tree import map_layers, named_leaves
from tests.qwen_jax.networks import GREEDY, QWEN2, QWEN3, V1, distance
from tests.qwen_jax.nn.kernels.cases import projected


@pytest.mark.parametrize(
    ("kv_heads", "groups", "tensor", "copies", "places", "queries"),
    [
        (8, 5, 8, 1, 8, 5),  # they divide: as they are
        (5, 1, 8, 1, 8, 1),  # the like of 40 on 16
        (4, 7, 8, 2, 8, 4),  # Qwen2.5-7B
        (2, 7, 8, 4, 8, 2),  # 0.5B
        (2, 6, 4, 2, 4, 3),  # 1.5B
        (1, 2, 8, 2, 8, 1),  # more devices than heads
        (6, 4, 4, 1, 8, 8),  # a third of zeros rather than twice the keys
    ],
)
def test_as_few_as_can_be(
    kv_heads: int, groups: int, tensor: int, copies: int, places: int, queries: int
) -> None:
    found = Heads.of(kv_heads, groups, make_mesh(devices=jax.devices()[:tensor]))
    assert (found.copies, found.places, found.queries) == (copies, places, queries)


def attend(
    kv_heads: int, groups: int, dtype: str, backend: Backend, calls: tuple[int, ...] = (5, 1)
) -> tuple[list[Any], Cache]:
    """What tokens of two rows see through a cache in pages, so many in each call."""
    config = Config(**vars(Config.from_hf(QWEN2)) | {"kv_heads": kv_heads, "head_dim": 16})
    config = Config(**vars(config) | {"heads": kv_heads * groups})
    draw = np.random.default_rng(0).normal
    heads = (config.heads, kv_heads, kv_heads)
    qkv = [jnp.asarray(draw(size=(2, 6, n, config.head_dim)), jnp.float32) for n in heads]
    table, positions = jnp.asarray([[1], [0]]), jnp.tile(jnp.arange(6), (2, 1))

    def run(cache: Cache) -> tuple[list[Any], Cache]:
        found = []
        for call, end in zip(calls, itertools.accumulate(calls), strict=True):
            q, k, v, places = (x[:, end - call : end] for x in (*qkv, positions))
            cache = cache.select(table, places[:, -1] + 1, apart=True)
            y, cache = cache.attend(0, projected(q, k, v, places))
            found.append(y)
        return found, cache

    return jax.jit(run)(Cache.paged(config, 2, jnp.dtype(dtype), backend))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(("kv_heads", "groups"), [(5, 1), (4, 7), (3, 2)])
def test_attention_is_that_of_one_device(kv_heads: int, groups: int, dtype: str) -> None:
    got, cache = attend(kv_heads, groups, dtype, Backend("xla", make_mesh()))
    wanted, _ = attend(kv_heads, groups, dtype, Backend())
    assert all(distance(x, y) < 1e-6 for x, y in zip(got, wanted, strict=True))
    assert cache.keys[0].data.shape[1] == 8


def test_a_kernel_gives_every_bit() -> None:
    ask = lambda mesh: attend(3, 2, "int8", Backend("triton", mesh, interpret=True), calls=(1,))
    (got, _), (wanted, _) = ask(make_mesh()), ask(None)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def on(params: Qwen, mesh: Any) -> Qwen:
    leaves = named_leaves(params)
    placed = jax.device_put(params, shardings(params.config, mesh, quant.formats_of(leaves)))
    return quant.arrange_all(placed, "cpu")


def part(params: Qwen) -> float:
    """What one device holds of the weights."""
    size = lambda x: x.addressable_shards[0].data.nbytes / x.nbytes
    leaves = jax.tree.leaves(params)
    return sum(size(x) * x.nbytes for x in leaves) / sum(x.nbytes for x in leaves)


IDS = np.arange(12)[None] * 7 % 96


def test_integers_on_heads_and_groups_that_do_not_divide() -> None:
    """5 heads and 3 groups of inputs on 8 devices: outputs are cut instead."""
    hf = V1 | {"hidden_size": 320, "num_attention_heads": 5, "kv_channels": 64}
    config = Config.from_hf(hf | {"intermediate_size": 2 * 192, "use_logn_attn": True})
    whole = init(config, jax.random.key(0))
    codes = map_layers(
        lambda name, x: quant.quantize(x, 4, 64, False) if name.startswith("blocks") else x,
        whole,
        Linear,
    )
    one, placed = quant.arrange_all(codes, "cpu"), on(codes, make_mesh())
    assert part(placed) < 1.1 / 8
    assert distance(decode.score(placed, IDS), decode.score(one, IDS)) < 2e-5


def test_nothing_of_it_is_saved(tmp_path: Path) -> None:
    params = init(Config.from_hf(QWEN3), jax.random.key(0))  # 2 heads for 8 devices
    save(on(params, make_mesh()), tmp_path / "saved")
    again = load(tmp_path / "saved", make_mesh(devices=jax.devices()[:1]))
    assert again.config == params.config
    jax.tree.map(np.testing.assert_array_equal, named_leaves(again), named_leaves(params))


# --- whole networks ----------------------------------------------------------------------------
LIKE_14B = V1 | {"hidden_size": 320, "num_attention_heads": 40, "intermediate_size": 2 * 848}
LIKE_7B = QWEN2 | {
    "hidden_size": 448,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 2368,
}


def place(hf: dict[str, Any], devices: int) -> tuple[Qwen, Qwen]:
    """A network and the same on a mesh, where a device holds its part and logits are equal."""
    params = init(Config.from_hf(hf), jax.random.key(0))
    placed = on(params, make_mesh(devices=jax.devices()[:devices]))
    assert part(placed) < 1.02 / devices
    assert distance(decode.score(placed, IDS), decode.score(params, IDS)) < 2e-5
    return params, placed


def test_four_of_28_heads_on_eight_devices() -> None:
    asked = [[*range(5, 17)], [3, 9]], GREEDY
    wanted, got = (complete(x, *asked, max_new_tokens=6) for x in place(LIKE_7B, 8))
    assert got == wanted


def test_forty_heads_on_sixteen_devices() -> None:
    script = """
import jax
jax.config.update("jax_num_cpu_devices", 16)
from tests.qwen_jax.nn.test_heads import LIKE_14B, place
place(LIKE_14B, 16)
print("equal", jax.device_count())
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "equal 16\n", run.stderr
