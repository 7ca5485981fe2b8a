"""The same answers on any mesh, from arrays that really lie in parts."""

import functools
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import Array
from jax.sharding import PartitionSpec as P

from qwen_jax.decoding import decode, prompts
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import State
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh, mesh_of, shardings, spec
from tests.processes import joining
from tests.qwen_jax.networks import (
    GREEDY,
    QWEN2,
    V1,
    assemble,
    cache_sizes,
    distance,
    finish,
    prefill,
    settings,
    structure,
)
from tests.reference import random_checkpoint

NETWORKS = {
    "v1": V1 | {"hidden_size": 64, "kv_channels": 16, "intermediate_size": 128},  # 4 heads
    "odd": V1 | {"hidden_size": 72, "num_attention_heads": 9, "vocab_size": 97},  # no mesh divides
    "grouped": QWEN2 | {"hidden_size": 64, "num_attention_heads": 8},  # 2 kv heads
}
MESHES = {
    "tensor 8": {},
    "fsdp 2 tensor 4": {"fsdp": 2},
    "fsdp 8": {"fsdp": 8},
    "data 2 tensor 4": {"data": 2, "tensor": 4},
}
PROMPTS = [list(range(5, 17)), list(range(40, 50))]
SAMPLINGS = [GREEDY, Sampling(temperature=1.0, top_k=40, top_p=0.95)]


@functools.cache
def network(name: str) -> Qwen:
    return assemble(NETWORKS[name], random_checkpoint(NETWORKS[name], seed=1))


def place(params: Qwen, **sizes: int) -> Qwen:
    return jax.device_put(params, shardings(params.config, make_mesh(**sizes)))


@functools.cache
def logits(name: str) -> Array:
    return decode.score(network(name), np.array([PROMPTS[0]]))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits(name: str, mesh: str) -> None:
    """Sums over shards round differently, by a float32's last digits."""
    placed = place(network(name), **MESHES[mesh])
    assert distance(decode.score(placed, np.array([PROMPTS[0]])), logits(name)) < 2e-6


def tokens(params: Qwen) -> tuple[State, dict[int, list[Any]]]:
    """Two requests in two of four slots."""
    state, first = decode.start(params, 4, 64), {}
    for slot, (ids, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True)):
        state, output = prefill(params, state, 2 * slot, ids, settings(sampling, seed=7), new=9)
        first[2 * slot] = output.tokens[0].tolist()
    return finish(params, state, first)


tokens_on_one = functools.cache(lambda name: tokens(network(name))[1])


@pytest.mark.parametrize(
    ("name", "mesh", "slots_a_device"),
    [
        ("v1", "fsdp 2 tensor 4", 2),
        ("odd", "fsdp 8", 4),  # 8 do not divide 4 slots
        ("grouped", "data 2 tensor 4", 2),
    ],
)
def test_tokens(name: str, mesh: str, slots_a_device: int) -> None:
    """Greedy and sampled; the state stays where the programs were compiled for it."""
    state, got = tokens(place(network(name), **MESHES[mesh]))
    assert got == tokens_on_one(name)
    assert shard(state.cache.keys[0].data)[0] == slots_a_device
    programs = cache_sizes(prompts._prefill, decode._step)
    tokens(place(network(name), **MESHES[mesh]))
    assert cache_sizes(prompts._prefill, decode._step) == programs


# --- where things lie --------------------------------------------------------------------------
def shard(array: Array) -> tuple[Any, ...]:
    (shape,) = {piece.data.shape for piece in array.addressable_shards}
    return shape


@pytest.mark.parametrize(
    ("name", "sizes", "wanted"),
    [
        ("v1", {"fsdp": 2}, {"embed": (24, 32), "qkv": (48, 32), "bias": (48,), "down": (32, 16)}),
        ("v1", {}, {"embed": (12, 64), "qkv": (24, 64), "bias": (24,), "down": (64, 8)}),
        ("v1", {"fsdp": 8}, {"embed": (96, 8), "qkv": (192, 8), "bias": (192,), "down": (8, 64)}),
        (
            "odd",
            {"fsdp": 2},
            {"embed": (97, 36), "qkv": (54, 36), "bias": (54,), "down": (36, 12)},
        ),
        (
            "grouped",
            {"fsdp": 4},
            {"embed": (48, 16), "qkv": (48, 16), "bias": (48,), "down": (16, 24)},
        ),
        (
            "grouped",
            {"data": 8},
            {"embed": (96, 64), "qkv": (96, 64), "bias": (96,), "down": (64, 48)},
        ),
    ],
)
def test_parameters_lie_in_parts(name: str, sizes: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Heads are cut between key/value heads, other sizes where they divide; the rest is whole."""
    params = place(network(name), **sizes)
    block = params.blocks[0]
    arrays: dict[str, Any] = {
        "embed": params.embed,
        "qkv": block.attn.qkv.kernel,
        "bias": block.attn.qkv.bias,
    }
    assert {k: shard(v) for k, v in (arrays | {"down": block.mlp.down.kernel}).items()} == wanted


def test_every_leaf_has_a_place() -> None:
    params = network("grouped")
    places = shardings(params.config, make_mesh())
    assert structure(places) == structure(params)


def test_make_mesh() -> None:
    assert dict(make_mesh(data=2, fsdp=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(devices=jax.devices()[:3]).shape) == {"data": 1, "fsdp": 1, "tensor": 3}
    wanted = (
        "data 3 x fsdp 1 x tensor 2 makes 6 devices, there are 8; choose sizes whose product is 8"
    )
    with pytest.raises(ValueError, match=wanted):
        make_mesh(data=3)
    with pytest.raises(ValueError, match="there are 8"):
        make_mesh(tensor=4)


def test_spec() -> None:
    mesh = make_mesh(data=2, fsdp=2)
    assert spec(mesh, ("vocab", "width"), (96, 64)) == P("tensor", "fsdp")
    assert spec(mesh, ("slot", "heads", None), (8, 3, 4)) == P(("data", "fsdp"), None, None)
    assert spec(make_mesh(), ("width", "mlp"), (64, 48)) == P(None, "tensor")  # fsdp 1 cuts nothing


def test_mesh_of() -> None:
    params = network("v1")
    assert mesh_of(params) is None
    assert mesh_of(place(params, fsdp=2)) == make_mesh(fsdp=2)


# --- several processes -------------------------------------------------------------------------
PROCESS = (
    joining(devices=2)
    + """
import tests.qwen_jax.nn.test_sharding as case
print("tokens", case.tokens_of_a_process())
"""
)


def tokens_of_a_process() -> Any:
    """Every process makes the same numbers, keeps its own shards, and reads whole outputs."""
    assert jax.device_count() == 4
    host = network("grouped")
    places = shardings(host.config, make_mesh(fsdp=2))
    whole = jax.tree.map(np.asarray, host)
    part = lambda x, place: jax.make_array_from_callback(x.shape, place, lambda index: x[index])
    params = jax.tree.map(part, whole, places)
    assert params.embed.is_fully_addressable == (jax.process_count() == 1)
    state, first = decode.start(params, 4, 64), []
    for slot, (ids, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True)):
        state, output = prefill(params, state, 2 * slot, ids, settings(sampling, seed=7), new=9)
        first.append(output.tokens[0].tolist())
    rest = np.asarray(decode.step(params, state, 8)[1].tokens)[::2].tolist()
    return [one + more for one, more in zip(first, rest, strict=True)]


def test_two_processes() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    run = functools.partial(
        subprocess.Popen, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True
    )
    processes = [run([sys.executable, "-c", PROCESS, str(rank), port, "."]) for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = [
        [line for line in output.splitlines() if line.startswith("tokens")] for output in outputs
    ]
    wanted = [[f"tokens {list(tokens_on_one('grouped').values())}"]] * 2
    assert found == wanted
