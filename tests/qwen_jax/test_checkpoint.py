"""Native checkpoints: what `save` writes and `convert` writes, `load` puts where it belongs."""

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import NamedSharding, SingleDeviceSharding

import convert
from qwen_jax import bundled
from qwen_jax.checkpoint import examine, load, save
from qwen_jax.config import Config
from qwen_jax.nn.sharding import make_mesh, shardings
from qwen_jax.nn.tree import named_leaves
from qwen_jax.storage import native
from qwen_jax.storage.hf_config import to_hf
from tests.assets import assets_of, tokenizer_of
from tests.conftest import Golden
from tests.convert.small import QWEN2, QWEN3, V1, assert_holds, assert_same_params, random_params
from tests.processes import joining
from tests.qwen_jax.networks import structure

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
EIGHT_HEADS = QWEN2 | {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 64}


@pytest.fixture(scope="module")
def folder(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native checkpoint to read."""
    return convert.to_native(golden("v1/base"), tmp_path_factory.mktemp("native") / "base")


@pytest.mark.parametrize("config", [V1, V1 | {"use_logn_attn": True}, QWEN2, QWEN3])
def test_save_and_load_fresh_parameters(config: dict[str, Any], tmp_path: Path) -> None:
    params = random_params(config, jnp.bfloat16)
    save(params, tmp_path / "new")
    loaded = load(tmp_path / "new")
    assert_same_params(loaded, params)
    assert assets_of(loaded).tokenizer is None
    save(loaded, tmp_path / "again")
    assert_same_params(load(tmp_path / "again"), params)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["again", "new"]


def test_the_files_of_a_checkpoint_go_with_it(golden: Golden, folder: Path, tmp_path: Path) -> None:
    params = load(folder)
    doubled = jax.tree.map(lambda leaf: leaf * 2, params)
    save(doubled, tmp_path / "doubled")
    assert_same_params(load(tmp_path / "doubled"), doubled)
    back = convert.to_hf(tmp_path / "doubled", tmp_path / "back")
    source = golden("v1/base")
    names = sorted(f.name for f in source.iterdir() if f.name != "golden.safetensors")
    assert sorted(f.name for f in back.iterdir()) == names
    for name in names:
        if not name.endswith(".safetensors"):
            assert (back / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("sizes", [{}, {"tensor": 2, "fsdp": 2, "data": 2}, {"fsdp": 8}])
def test_meshes(tmp_path: Path, sizes: dict[str, Any]) -> None:
    """Each leaf arrives in its shards, from files that were written on another mesh or on none."""
    params = random_params(EIGHT_HEADS)
    save(params, tmp_path / "whole")
    mesh = make_mesh(**sizes)
    sharded = load(tmp_path / "whole", mesh=mesh)
    places = named_leaves(shardings(params.config, mesh))
    for name, leaf in named_leaves(sharded).items():
        assert leaf.sharding == places[name]
    kernel = sharded.blocks[0].mlp.up.kernel
    assert kernel.addressable_shards[0].data.size * 8 // mesh.shape["data"] <= 8 * kernel.size
    assert_same_params(sharded, params)
    save(sharded, tmp_path / "sharded")
    assert_same_params(load(tmp_path / "sharded"), params)


def test_default_mesh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharding = load(folder).embed.sharding
    assert isinstance(sharding, NamedSharding)
    assert sharding.mesh.size == 8
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert load(folder).embed.sharding == SingleDeviceSharding(jax.devices()[0])


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16, np.dtype("float32")])
def test_dtype(golden: Golden, folder: Path, dtype: Any) -> None:
    assert_holds(load(folder, dtype=dtype), golden("v1/base"), dtype=jnp.dtype(dtype))


def test_assets(folder: Path) -> None:
    params, again = load(folder), load(folder)
    assert assets_of(params).folder == folder
    assert hash(params.assets) != hash(again.assets)
    assert structure(params) == structure(jax.tree.map(jnp.negative, params))


def test_shapes_are_known_before_arrays_are(folder: Path) -> None:
    seen: list[Any] = []
    params = load(folder, dtype="bfloat16", before_reading=seen.append)
    (shapes,) = seen
    assert shapes.assets is params.assets
    assert structure(shapes) == structure(params)
    told = lambda x: (x.shape, x.dtype, x.sharding)
    assert [*map(told, jax.tree.leaves(shapes))] == [*map(told, jax.tree.leaves(params))]


# --- refusals ---------------------------------------------------------------------------------
def test_not_native(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*qwen-jax convert --hf"):
        load(tmp_path / "nothing")
    with pytest.raises(
        ValueError, match="Hugging Face checkpoint; convert it first: qwen-jax conv"
    ):
        load(golden("v1/base"))
    with pytest.raises(ValueError, match=r"is no checkpoint: it has no manifest\.json; give"):
        load(tmp_path)


def test_save_refuses(tmp_path: Path) -> None:
    params = random_params(QWEN2)
    (tmp_path / "old").mkdir()
    with pytest.raises(FileExistsError, match="old exists"):
        save(params, tmp_path / "old")
    params.blocks[0].mlp.up.bias = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.up\.bias is unknown to this network"):
        save(params, tmp_path / "new")
    assert [f.name for f in tmp_path.iterdir()] == ["old"]


def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, piece: str, arrays: dict[str, Array]) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(native, "write_piece", fail)
    with pytest.raises(OSError, match=r"new is full: .* left, .* needed; make room"):
        save(random_params(QWEN2), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# --- a config.json for fresh parameters -------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        V1,
        V1 | {"use_dynamic_ntk": True, "use_logn_attn": True, "rotary_emb_base": 1e6},
        QWEN2,
        QWEN2 | {"tie_word_embeddings": True, "rope_scaling": YARN},
        QWEN3,
    ],
)
def test_config_is_written_and_read(config: dict[str, Any]) -> None:
    read = Config.from_hf(config)
    assert Config.from_hf(json.loads(json.dumps(to_hf(read)))) == read


def test_config_of_no_family() -> None:
    config = dataclasses.replace(Config.from_hf(QWEN3), ntk_length=64)
    with pytest.raises(ValueError):
        to_hf(config)


# --- the bundled checkpoint, several processes --------------------------------------------------
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    params = load("demo")
    assert tokenizer_of(params).encode("Hello")
    assert_holds(params, bundled.CHECKPOINT)
    (kept,) = (tmp_path / "qwen_jax").iterdir()
    monkeypatch.setattr(subprocess, "run", None)  # the second time nothing is converted
    assert assets_of(load("demo")).folder == kept


PROCESS = (
    joining(devices=2)
    + """
import numpy as np
from qwen_jax.checkpoint import load, save
params = load(folder + "/whole")
kernel = params.blocks[0].mlp.up.kernel
assert kernel.sharding.mesh.size == 4
held = sum(shard.data.shape[0] for shard in kernel.addressable_shards)
assert held == kernel.shape[0] // 2, held
save(params, folder + "/sharded")
again = load(folder + "/sharded")
for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
    for a, b in zip(one.addressable_shards, other.addressable_shards, strict=True):
        np.testing.assert_array_equal(np.asarray(a.data), np.asarray(b.data))
print("good", rank)
"""
)


def test_two_processes(tmp_path: Path) -> None:
    """Each reads its half of the shards; together they write a checkpoint that one can read."""
    params = random_params(EIGHT_HEADS)
    save(params, tmp_path / "whole")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    root = Path(__file__).parents[2]
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROCESS, str(rank), str(port), str(tmp_path)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    for rank, output in enumerate(outputs):
        assert f"good {rank}" in output, output
    assert_same_params(load(tmp_path / "sharded"), params)


def test_what_was_examined_is_not_read_again(tmp_path: Path) -> None:
    examined = examine("demo")
    params: Any = load(examined)
    assert params.assets is examined.assets
    with pytest.raises(ValueError, match="extra_vocab_file is for `examine`"):
        load(examined, extra_vocab_file=tmp_path / "x")
