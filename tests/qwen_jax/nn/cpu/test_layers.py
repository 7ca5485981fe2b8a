"""A network with products of our own says what it says with XLA's."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import load, logits
from qwen_jax.config import Config
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.nn import quant
from qwen_jax.nn.cpu import kinds
from qwen_jax.nn.cpu.layers import HostLinear, can_loop, hosted, looped
from qwen_jax.nn.kv_cache import NoCache
from qwen_jax.nn.lora import Delta, Deltas, LoraLinear, select_adapters
from qwen_jax.nn.model import Linear, LinearLayer, Qwen, init
from qwen_jax.nn.sharding import make_mesh, shardings
from qwen_jax.nn.tree import map_linears, named_layers
from tests.qwen_jax.networks import QWEN2, QWEN3, distance

SIZES = {"hidden_size": 64, "intermediate_size": 96}
TIED = Config.from_hf(QWEN2 | SIZES)
APART = Config.from_hf(QWEN3 | SIZES | {"head_dim": 16})


@pytest.fixture(scope="module")
def params() -> Qwen:
    return init(TIED, jax.random.key(0))


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def turn(value: str) -> None:
        monkeypatch.setenv(kinds.SWITCH, value)
        kinds.available.cache_clear()

    yield turn
    monkeypatch.undo()
    kinds.available.cache_clear()


def scores(params: Qwen) -> np.ndarray:
    tokens = jnp.arange(12).reshape(4, 3) * 7 % 96
    positions = jnp.tile(jnp.arange(3), (4, 1))

    def run(params: Qwen) -> Any:
        x, _ = params(tokens, positions, positions[:, -1], NoCache())
        return params.logits(x)

    return np.asarray(jax.jit(run)(params))


def lowered(params: Qwen) -> str:
    tokens = jnp.zeros((4, 3), jnp.int32)
    call = jax.jit(lambda params: params(tokens, tokens, tokens[:, 0], NoCache())[0])
    return str(call.lower(params).as_text())


def two_adapters(params: Qwen) -> Qwen:
    def adapted(name: str, x: Linear) -> Any:
        draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / 8
        out, inputs = x.kernel.shape
        scales = jnp.array([[0, 0], [1, 0], [0, 2]], jnp.float32)
        seed = zlib.crc32(name.encode())
        deltas = Deltas(draw(seed, 2, inputs), draw(seed + 1, out, 2), scales, None, None)
        return LoraLinear(x, (deltas,))

    return map_linears(adapted, params)


def layers(params: Qwen) -> dict[str, type]:
    return {name: type(x) for name, x in named_layers(params, LinearLayer).items()}


@pytest.mark.parametrize("config", [TIED, APART], ids=["tied", "apart"])
def test_every_product_is_ours(config: Config) -> None:
    params = init(config, jax.random.key(0))
    made: Any = hosted(params)
    assert set(layers(made).values()) == {HostLinear}
    assert type(made.head) is HostLinear  # of a tied network too
    assert distance(scores(made), scores(params)) < 2e-6


@pytest.mark.parametrize("bits", [4, 8])
def test_integers(params: Qwen, bits: int) -> None:
    low = map_linears(lambda _, x: quant.quantize(x, bits, 32, False), params)
    placed = quant.arrange_all(low, "cpu")
    made = hosted(placed)
    inside = {kind for name, kind in layers(made).items() if name.startswith("blocks")}
    assert inside == {HostLinear}
    assert distance(scores(made), scores(low)) < 5e-6


def test_an_order_of_inputs(params: Qwen) -> None:
    order = jnp.asarray(np.random.default_rng(0).permutation(64), jnp.int32)

    def quantised(_: str, x: Linear) -> Any:
        made = quant.quantize(x, 8, None, True)
        made.order = order if made.inputs == 64 else None
        return made

    low = map_linears(quantised, params)
    assert distance(scores(hosted(quant.arrange_all(low, "cpu"))), scores(low)) < 5e-6


def test_adapters_stay_beside_it(params: Qwen) -> None:
    def adapted(_: str, x: Linear) -> Any:
        draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / 8
        out, inputs = x.kernel.shape
        return LoraLinear(x, (Delta(draw(1, 2, inputs), draw(2, out, 2), None, None, 1.0, 0.0),))

    changed = map_linears(adapted, params)
    made = hosted(changed)
    kept = {name: type(x.base) for name, x in named_layers(made, LoraLinear).items()}
    assert set(kept.values()) == {HostLinear}
    assert distance(scores(made), scores(changed)) < 5e-6


@pytest.mark.parametrize("what", ["plain", "int8", "adapters"])
def test_one_block_for_all(what: str) -> None:
    """What it computes, and that a program does not grow with the layers."""
    deep = [init(replace(APART, layers=count), jax.random.key(0)) for count in (3, 6)]
    if what == "int8":
        deep = [map_linears(lambda _, x: quant.quantize(x, 8, 32, False), one) for one in deep]
        deep = [quant.arrange_all(one, "cpu") for one in deep]
    if what == "adapters":
        deep = [two_adapters(one) for one in deep]
    made = [hosted(one) for one in deep]
    assert all(map(can_loop, made))
    apart, *together = (
        select_adapters(one, jnp.array([1, 0, 2, 1])) for one in (made[0], *map(looped, made))
    )
    assert distance(scores(together[0]), scores(apart)) < 2e-6
    short, long, unrolled = (len(lowered(one).splitlines()) for one in (*together, apart))
    assert long < 1.1 * short < 1.1 * unrolled


def test_blocks_that_differ_stay_apart(params: Qwen) -> None:
    first, *others = init(replace(TIED, layers=2), jax.random.key(0)).blocks
    first.attn.qkv.bias = None
    assert not can_loop(hosted(replace(params, blocks=(first, *others))))
    odd = init(replace(TIED, mlp=90, layers=2), jax.random.key(0))
    assert not can_loop(hosted(odd))  # XLA would copy each layer's kernel out of all layers'


def test_what_no_product_takes_is_xlas() -> None:
    odd = init(replace(TIED, mlp=90), jax.random.key(0))
    made = layers(hosted(odd))
    assert made["blocks.0.mlp.up"] is made["blocks.0.mlp.down"] is Linear  # 90 outputs, 90 inputs
    assert made["blocks.0.attn.qkv"] is HostLinear
    half = init(TIED, jax.random.key(0), jnp.float16)
    assert set(layers(hosted(half)).values()) == {Linear}
    layer: Any = hosted(init(TIED, jax.random.key(0))).blocks[0].mlp.up
    assert layer.float32(jnp.ones((2, 0, 64))).shape == (2, 0, 96)
    x = jnp.ones((2, 64), jnp.bfloat16)  # of another type than the weights
    assert (layer.float32(x) == layer._plain().float32(x)).all()


def test_one_cpu_alone_has_them(params: Qwen) -> None:
    placed = lambda mesh: jax.device_put(params, shardings(params.config, mesh))
    own = lambda params: HostLinear in layers(flatten(params).model()).values()
    assert own(params)
    assert own(placed(make_mesh(devices=jax.devices()[:1])))
    assert not own(placed(make_mesh(tensor=2, devices=jax.devices()[:2])))
    assert own(jax.device_put(params, jax.devices()[3]))
    elsewhere = jax.device_put(params, jax.devices()[3])
    assert distance(logits(elsewhere, [1, 2, 3]), logits(params, [1, 2, 3])) < 1e-6


def test_the_switch(params: Qwen, switch: Any) -> None:
    switch("xla")
    assert hosted(params) is params
    low = quant.quantize(Linear(jnp.ones((8, 64)), None), 4, 32, True)
    assert quant.arrange(low, "cpu").codes.ndim == 2  # in pairs, as XLA likes them
    switch("own")
    assert hosted(params) is not params
    assert quant.arrange(low, "cpu").codes.ndim == 3
    switch("fast")
    with pytest.raises(ValueError, match="QWEN_JAX_CPU_PRODUCTS is 'fast', wanted own or xla"):
        hosted(params)
    with pytest.raises(ValueError, match="wanted own or xla"):
        load("demo", before_reading=lambda _: pytest.fail("it began"))


@pytest.mark.parametrize("missing", ["avx2", "fma", "f16c"])
def test_an_old_processor(missing: str, switch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    has = dict.fromkeys(("avx2", "fma", "f16c"), True) | {missing: False}
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: has)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    switch("own")
    assert not kinds.available()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")  # which has all that is asked for
    switch("own")
    assert kinds.available()


def test_parameters_that_a_caller_traces_or_numpy_has(params: Qwen) -> None:
    """They lie on no device that is known, and XLA's products have gradients."""
    wanted = logits(params, [1, 2, 3])
    assert distance(jax.jit(lambda params: logits(params, [1, 2, 3]))(params), wanted) < 2e-6
    assert distance(logits(jax.tree.map(np.asarray, params), [1, 2, 3]), wanted) < 2e-6
    slope = jax.grad(lambda params: logits(params, [1, 2, 3]).sum())(params)
    assert np.asarray(slope.embed).any()


def test_without_llvmlite(params: Qwen, switch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    switch("own")
    assert hosted(params) is params
