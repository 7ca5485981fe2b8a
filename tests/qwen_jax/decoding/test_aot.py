"""Without an accelerator: what the decode functions become on one, and what a mesh sends."""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.support.hlo import Module
from qwen_jax.config import Config
from qwen_jax.decoding import aot, decode
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.nn.sharding import make_mesh
from tests.qwen_jax.networks import structure

WIDTH, LENGTH = 256, 64
V1 = Config(
    vocab=1024,
    width=WIDTH,
    layers=1,
    heads=8,
    kv_heads=8,
    head_dim=32,
    mlp=384,
    norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=False,
    tied=False,
    rope_base=1e4,
    ntk_length=32,
    logn_length=32,
    yarn=None,
    max_length=LENGTH,
    init_std=0.02,
)
GROUPED = Config(
    **vars(V1) | {"kv_heads": 4, "tied": True, "ntk_length": None, "logn_length": None}
)
NORMED = Config(**vars(GROUPED) | {"qkv_bias": False, "qk_norm": True})


def lower(
    config: Config, platform: str, cache_dtype: Any = jnp.bfloat16, slots: int = 2
) -> tuple[str, str]:
    """StableHLO of a step and of a prefill."""
    params = aot.params(config, jnp.bfloat16)
    state = aot.state(params, slots, LENGTH, cache_dtype)
    traced = aot.step(params, state, 4), aot.prefill(params, state, 16)
    step, prefill = (t.lower(lowering_platforms=(platform,)).as_text() for t in traced)
    return step, prefill


def rows(program: str) -> set[int]:
    """How many rows the products with the weights have."""
    found = re.findall(rf"dot_general.* : \(tensor<(\d+)x(?:{WIDTH}|384)xbf16>", program)
    return {int(n) for n in found}


@pytest.mark.parametrize("cache_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("config", [V1, GROUPED, NORMED], ids=["v1", "grouped", "normed"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers(platform: str, config: Config, cache_dtype: str) -> None:
    step, prefill = lower(config, platform, cache_dtype)
    assert "stablehlo.while" in step
    assert 16 in rows(prefill)


@pytest.mark.parametrize(
    ("platform", "slots", "want"), [("tpu", 1, 8), ("tpu", 3, 8), ("cuda", 1, 1)]
)
def test_rows_of_a_step(platform: str, slots: int, want: int) -> None:
    step, _ = lower(V1, platform, slots=slots)
    assert rows(step) == {want}


def test_a_tpus_programs_carry_its_options() -> None:
    weights = flatten(aot.params(V1, jnp.bfloat16))
    assert decode._step.of(weights) is decode._step.plain
    weights = replace(weights, structure=replace(weights.structure, platform="tpu"))
    assert decode._step.of(weights) is decode._step.on_tpu


@pytest.fixture(scope="module")
def mesh() -> Any:
    return make_mesh(data=2, tensor=2, devices=jax.devices()[:4])


def test_a_sharded_step_moves_no_weights(mesh: Any) -> None:
    params = aot.params(V1, jnp.bfloat16, mesh)
    lowered = aot.step(params, aot.state(params, 2, LENGTH), 4).lower()
    # without this constraint a TPU's compiler moves the head; a CPU's does not
    split = r'sharding_constraint %\S+ <@mesh, \[\{\}, \{"tensor"\}\]> : tensor<2x1024xf32>'
    assert re.search(split, lowered.as_text())
    module = Module(lowered.compile().as_text())
    smallest = WIDTH * WIDTH * 2 // 2  # bytes of a device's part of a weight matrix
    network = 0
    for _, arrays, times, instruction in module.sent(module.loop()):
        size = sum(array.bytes for array in arrays)
        assert size < smallest
        # sums over 1,024 logits of two rows, filled up to keep their bits, are many exchanges
        network += 0 if "/sampling/" in (instruction.source or "") else times * size
    assert 0 < network < smallest


def test_the_lowered_state_is_what_start_gives(mesh: Any) -> None:
    params = aot.params(V1, jnp.bfloat16, mesh)
    abstract = aot.state(params, 2, LENGTH, jnp.int8)
    weights = flatten(params)
    backend, dtype = decode.choose(weights, LENGTH, None, None, jnp.int8)
    real = decode._start(weights.structure, 2, LENGTH, dtype, None, backend, False, 0)
    assert structure(abstract) == structure(real)
    for want, got in zip(jax.tree.leaves(abstract), jax.tree.leaves(real), strict=True):
        assert (want.shape, want.dtype) == (got.shape, got.dtype)
        assert want.sharding.is_equivalent_to(got.sharding, got.ndim)


LOOP = """
HloModule m
%copying (p: f32[8,4]) -> f32[4,8] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %t = f32[4,8]{1,0} transpose(%p), dimensions={1,0}
}
%writing (p: f32[8,4], q: f32[1,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[1,4]{1,0} parameter(1)
  %i = s32[] constant(0)
  ROOT %u = f32[8,4]{1,0} dynamic-update-slice(%p, %q, %i, %i)
}
%body (s: (f32[8,4])) -> (f32[8,4]) {
  %s = (f32[8,4]{1,0}) parameter(0)
  %a = f32[8,4]{1,0} get-tuple-element(%s), index=0
  %b = f32[4,8]{1,0} fusion(%a), kind=kLoop, calls=%copying, metadata={op_name="transposed"}
  %c = f32[1,4]{1,0} all-reduce(%b), channel_id=1, metadata={op_name="first"}
  %c.1 = f32[1,4]{1,0} all-reduce(%b), channel_id=1, metadata={op_name="first"}
  %e = f32[1,4]{1,0} all-reduce(%b), channel_id=1, metadata={op_name="second"}
  %n = f32[8,4]{1,0:T(8,128)S(1)} copy(%a)
  %d = f32[8,4]{1,0} fusion(%a, %c), kind=kLoop, calls=%writing
  ROOT %r = (f32[8,4]{1,0}) tuple(%d)
}
%condition (s: (f32[8,4])) -> pred[] {
  ROOT %t = pred[] constant(true)
}
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}
ENTRY %main (x: f32[8,4]) -> (f32[8,4]) {
  %x = f32[8,4]{1,0} parameter(0)
  %w = (f32[8,4]{1,0}) tuple(%x)
  ROOT %loop = (f32[8,4]{1,0}) while(%w), condition=%condition, body=%body
}
"""


def test_the_reader_tells_copies_from_writes_in_place() -> None:
    module = Module(LOOP)
    body = module.loop()
    assert [(i.name, a.bytes) for i, a in module.large(body, 128)] == [("b", 128)]
    assert "transposed" in str(module.large(body, 128)[0][0])
    assert module.large(body, 129) == []
    assert module.kernels(body) == 6
    assert module.collectives(body) == {"all-reduce": {"count": 2, "bytes": 32}}


NESTED = """
HloModule m
%inner (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %two = s32[] constant(2)
  %n = s32[] add(%i, %two)
  %c = s32[] copy(%n)
  %g = (f32[4]{0}, f32[8]{0}) all-gather-start(%x), channel_id=1
  ROOT %r = (s32[], f32[8]{0}) tuple(%c, %x)
}
%shorter (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %seven = s32[] constant(7)
  ROOT %t = pred[] compare(%i, %seven), direction=LT
}
%outer (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  ROOT %w = (s32[], f32[8]{0}) while(%s), condition=%shorter, body=%inner
}
%longer (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  ROOT %t = pred[] constant(true)
}
ENTRY %main (x: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = (s32[], f32[8]{0}) parameter(0)
  %y = (s32[], f32[8]{0}) while(%x), condition=%longer, body=%outer, "known_trip_count":{"n":"3"}
  ROOT %r = (s32[], f32[8]{0}) all-reduce(%y), channel_id=2
}
"""


def test_the_reader_knows_how_often_loops_run() -> None:
    """Noted (3 times), and counted from 0 by 2 up to 7 (4 times)."""
    module = Module(NESTED)
    assert module.collectives(module.entry) == {
        "all-gather": {"count": 12, "bytes": 12 * 32},
        "all-reduce": {"count": 1, "bytes": 36},
    }


def test_a_profile_reads_like_the_source() -> None:
    """Scopes name where an operation comes from, and are no part of the program."""
    params = aot.params(V1, jnp.bfloat16)
    lowered = aot.step(params, aot.state(params, 2, LENGTH), 4).lower(lowering_platforms=("cuda",))
    named = lowered.as_text(debug_info=True)
    for layer in range(V1.layers):
        assert f"block_{layer}/attention/" in named
        assert f"block_{layer}/mlp/" in named
    for scope in ("embedding/", "head/", "sampling/"):
        assert scope in named
        assert scope not in lowered.as_text()
