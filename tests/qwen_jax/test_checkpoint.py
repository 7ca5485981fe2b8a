"""Native checkpoints: what `save` writes and `convert` writes, `load` puts where it belongs."""

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding

import convert
from qwen_jax import bundled
from qwen_jax.checkpoint import load, save
from qwen_jax.config import Config
from qwen_jax.nn.sharding import make_mesh, shardings
from qwen_jax.nn.tree import named_leaves
from qwen_jax.storage import native
from qwen_jax.storage.hf_config import to_hf
from tests.convert.small import QWEN2, QWEN3, V1, assert_holds, assert_same_params, random_params
from tests.processes import joining

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
EIGHT_HEADS = QWEN2 | {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 64}


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """A native checkpoint to read."""
    return convert.to_native(golden("v1/base"), tmp_path_factory.mktemp("native") / "base")


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of it to break."""
    return shutil.copytree(folder, tmp_path / "broken")


@pytest.mark.parametrize("config", [V1, V1 | {"use_logn_attn": True}, QWEN2, QWEN3])
def test_save_and_load_fresh_parameters(config, tmp_path):
    params = random_params(config, jnp.bfloat16)
    save(params, tmp_path / "new")
    loaded = load(tmp_path / "new")
    assert_same_params(loaded, params)
    assert loaded.assets.tokenizer is None
    save(loaded, tmp_path / "again")
    assert_same_params(load(tmp_path / "again"), params)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["again", "new"]


def test_the_files_of_a_checkpoint_go_with_it(golden, folder, tmp_path):
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
def test_meshes(tmp_path, sizes):
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


def test_default_mesh(folder, monkeypatch):
    sharding = load(folder).embed.sharding
    assert isinstance(sharding, NamedSharding)
    assert sharding.mesh.size == 8
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert load(folder).embed.sharding == SingleDeviceSharding(jax.devices()[0])


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16, np.dtype("float32")])
def test_dtype(golden, folder, dtype):
    assert_holds(load(folder, dtype=dtype), golden("v1/base"), dtype=jnp.dtype(dtype))


def test_assets(folder):
    params, again = load(folder), load(folder)
    assert params.assets.folder == folder
    assert hash(params.assets) != hash(again.assets)
    assert jax.tree.structure(params) == jax.tree.structure(jax.tree.map(jnp.negative, params))


# --- refusals ---------------------------------------------------------------------------------
def test_not_native(golden, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*python -m convert --hf"):
        load(tmp_path / "nothing")
    with pytest.raises(
        ValueError, match="Hugging Face checkpoint; convert it first: python -m conv"
    ):
        load(golden("v1/base"))
    with pytest.raises(ValueError, match=r"is no checkpoint: it has no manifest\.json"):
        load(tmp_path)


def edit_manifest(folder: Path, change) -> None:
    file = folder / native.MANIFEST
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=2), r"\('qwen_jax', 2\), this qwen_jax reads"),
        (lambda m: m.pop("format"), "convert the checkpoint again"),
        (lambda m: m.pop("files"), "damaged"),
        (lambda m: m.update(leaves=3), "damaged"),
        (lambda m: m["leaves"]["embed"].update(dtype="int9"), "damaged"),
        (lambda m: m["leaves"]["embed"].update(shape=[-1]), "damaged"),
        (lambda m: m["files"].update({"../x": ""}), "no plain file names"),
        (lambda m: m["shards"].update({"/x": {"tensors": {}}}), "no plain file names"),
        (lambda m: m.pop("pieces"), "damaged"),
        (lambda m: m.update(pieces=7), "damaged"),
        (lambda m: m["leaves"].pop("norm.scale"), r"norm.scale \[64\] is missing"),
        (lambda m: m["leaves"].update(x=m["leaves"]["embed"]), "x is unknown to this network"),
        (lambda m: m["leaves"]["embed"].update(shape=[8, 8]), r"embed has shape \[8, 8\]"),
    ],
)
def test_manifest(broken, change, message):
    edit_manifest(broken, change)
    with pytest.raises(ValueError, match=message):
        load(broken)


def test_every_problem_is_named(broken):
    shutil.rmtree(broken / "weights/head")
    (broken / "generation_config.json").unlink()
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 354}))
    shutil.copy(bundled.CHECKPOINT / "qwen.tiktoken", broken)
    with pytest.raises(ValueError) as caught:
        load(broken)
    for message in (
        "weights/head holds 0 bytes, ",
        "file generation_config.json is missing",
        "file config.json is not what was written",
        "blocks.1.mlp.down.kernel has shape [64, 176], the config asks for [64, 177]",
        "the tokenizer's ids reach 1265, the embedding has 512 rows",
    ):
        assert message in str(caught.value)


def test_damaged_weights(broken):
    piece = broken / "weights/blocks.0"
    content = (piece / "_METADATA").read_bytes()
    (piece / "_METADATA").write_bytes(bytes(len(content)))
    with pytest.raises(ValueError, match=r"blocks\.0 cannot be read: "):
        load(broken)
    (piece / "_METADATA").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"blocks\.0 holds \d+ bytes, \d+ were written"):
        load(broken)


def test_save_refuses(tmp_path):
    params = random_params(QWEN2)
    (tmp_path / "old").mkdir()
    with pytest.raises(FileExistsError, match="old exists"):
        save(params, tmp_path / "old")
    params.blocks[0].mlp.up.bias = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.up\.bias is unknown to this network"):
        save(params, tmp_path / "new")
    assert [f.name for f in tmp_path.iterdir()] == ["old"]


def test_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def fail(folder, piece, arrays):
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
def test_config_is_written_and_read(config):
    config = Config.from_hf(config)
    assert Config.from_hf(json.loads(json.dumps(to_hf(config)))) == config


def test_config_of_no_family():
    config = dataclasses.replace(Config.from_hf(QWEN3), ntk_length=64)
    with pytest.raises(ValueError):
        to_hf(config)


# --- the bundled checkpoint, several processes --------------------------------------------------
def test_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    params = load("demo")
    assert params.assets.tokenizer.encode("Hello")
    assert_holds(params, bundled.CHECKPOINT)
    (kept,) = (tmp_path / "qwen_jax").iterdir()
    monkeypatch.setattr(subprocess, "run", None)  # the second time nothing is converted
    assert load("demo").assets.folder == kept


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


def test_two_processes(tmp_path):
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
