"""Hugging Face -> native -> devices, and native -> Hugging Face: every bit survives."""

import base64
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import convert
from qwen_jax import bundled
from qwen_jax.checkpoint import load, save
from qwen_jax.config import Config
from qwen_jax.files.sizes import parse
from tests.assets import assets_of, tokenizer_of
from tests.conftest import Golden
from tests.convert.conftest import Copy, Edit
from tests.convert.small import QWEN2, QWEN3, V1, assert_holds, assert_same_files, random_params
from tests.reference import random_checkpoint, read_checkpoint, write_checkpoint

GOLDEN = "v1/base v1/bf16 modern/qwen2_gqa modern/qwen25_yarn modern/qwen3".split()
SINGLE = "model.safetensors"


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(
    golden: Golden, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = golden(name)
    folder = convert.to_native(source, tmp_path / "native", verify=True)
    assert "identical to the source, bit for bit" in capsys.readouterr().out
    params = load(folder)
    assert params.config == Config.from_hf(json.loads((source / "config.json").read_text()))
    assert_holds(params, source)
    assert_same_files(convert.to_hf(folder, tmp_path / "back"), source)


def test_demo_has_a_tokenizer(tmp_path: Path) -> None:
    folder = convert.to_native("demo", tmp_path / "demo")
    params = load(folder)
    assets, tokenizer = assets_of(params), tokenizer_of(params)
    assert tokenizer.decode(tokenizer.encode("Hello, 世界!")) == "Hello, 世界!"
    assert (assets.model_type, assets.folder) == ("qwen", folder)
    back = convert.to_hf(folder, tmp_path / "back")
    for file in back.iterdir():
        assert file.read_bytes() == (bundled.CHECKPOINT / file.name).read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(
    "config",
    [
        V1,
        V1 | {"num_attention_heads": 1, "kv_channels": 24},
        QWEN2,
        QWEN2 | {"num_key_value_heads": 6, "tie_word_embeddings": True},
        QWEN2 | {"num_key_value_heads": 1},
        QWEN3,
        QWEN3 | {"num_attention_heads": 4, "tie_word_embeddings": False},
    ],
    ids=["v1", "one_head", "gqa", "tied", "mqa", "qwen3", "qwen3_untied"],
)
def test_other_configs(config: dict[str, Any], dtype: type[Any], tmp_path: Path) -> None:
    tensors = {k: v.astype(dtype) for k, v in random_checkpoint(config, seed=1).items()}
    write_checkpoint(tmp_path / "hf", config, tensors)
    folder = convert.to_native(tmp_path / "hf", tmp_path / "native", verify=True)
    assert_holds(load(folder), tmp_path / "hf")
    assert_same_files(convert.to_hf(folder, tmp_path / "back"), tmp_path / "hf")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["v1/base", "v1/bf16"])
def test_dtype(
    golden: Golden,
    name: str,
    dtype: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = golden(name)
    folder = convert.to_native(source, tmp_path / "native", dtype=dtype, verify=True)
    assert "bit for bit" in capsys.readouterr().out
    assert_holds(load(folder), source, dtype=jnp.dtype(dtype))
    back = convert.to_hf(folder, tmp_path / "back")
    tensors = read_checkpoint(back)[1]
    for tensor, original in zip(tensors.values(), read_checkpoint(source)[1].values(), strict=True):
        np.testing.assert_array_equal(tensor, original.astype(jnp.dtype(dtype)))
    if (index := back / "model.safetensors.index.json").exists():
        total = json.loads(index.read_text())["metadata"]["total_size"]
        assert total == sum(tensor.nbytes for tensor in tensors.values())


def test_float16_overflow(checkpoint: Copy, edit: Edit, tmp_path: Path) -> None:
    source = checkpoint("v1/bf16")
    edit(source / "model.safetensors", **{"lm_head.weight": np.full((512, 64), 1e6, np.float32)})
    with pytest.raises(ValueError, match=r"lm_head.weight has values beyond float16's 65504"):
        convert.to_native(source, tmp_path / "native", dtype="float16")
    assert sorted(tmp_path.iterdir()) == [source]


def test_head_that_repeats_the_embedding(tmp_path: Path) -> None:
    tensors = random_checkpoint(QWEN3, seed=0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_checkpoint(tmp_path / "hf", QWEN3, tensors)
    folder = convert.to_native(tmp_path / "hf", tmp_path / "native", verify=True)
    assert load(folder).head is None
    assert_same_files(convert.to_hf(folder, tmp_path / "back"), tmp_path / "hf")

    save_file(tensors | {"lm_head.weight": -tensors["lm_head.weight"]}, tmp_path / "hf" / SINGLE)
    with pytest.raises(
        ValueError, match=r"ties lm_head.weight to the embedding, but the two differ"
    ):
        convert.to_native(tmp_path / "hf", tmp_path / "other")


def test_tables_rebuilt_from_the_config_are_dropped(
    checkpoint: Copy, edit: Edit, tmp_path: Path
) -> None:
    source = checkpoint("v1/bf16")
    wanted = load_file(source / SINGLE)
    edit(source / SINGLE, **{"transformer.h.0.attn.masked_bias": np.zeros(1, np.uint8)})
    folder = convert.to_native(source, tmp_path / "native", verify=True)
    made = load_file(convert.to_hf(folder, tmp_path / "back") / SINGLE)
    assert made.keys() == wanted.keys()


@pytest.mark.parametrize("config", [V1 | {"use_dynamic_ntk": True}, QWEN2, QWEN3])
def test_export_of_fresh_parameters(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters that never were a Hugging Face checkpoint become one, in shards."""
    monkeypatch.setattr("convert.export.LARGEST_SHARD", 8000)
    params = random_params(config)
    save(params, tmp_path / "native")
    back = convert.to_hf(tmp_path / "native", tmp_path / "back")
    assert_holds(params, back)
    index = json.loads((back / "model.safetensors.index.json").read_text())
    for tensor, name in index["weight_map"].items():
        assert tensor in load_file(back / name)
    again = convert.to_native(back, tmp_path / "again", verify=True)
    assert_holds(load(again), back)


def test_shard_size(golden: Golden, tmp_path: Path) -> None:
    """As many files as are asked for, whatever the original had, and one needs no index."""
    source = golden("v1/base")
    folder = convert.to_native(source, tmp_path / "native")
    many = convert.to_hf(folder, tmp_path / "many", shard_size="60KB")
    sizes = [file.stat().st_size for file in many.glob("*.safetensors")]
    largest = max(tensor.nbytes for tensor in read_checkpoint(source)[1].values())
    assert len(sizes) > 3
    assert max(sizes) < max(60_000, largest) + 4096
    one = convert.to_hf(folder, tmp_path / "one", shard_size=10**9)
    assert [file.name for file in one.glob("*model*")] == [SINGLE]
    for made in (many, one):
        assert_holds(load(folder), made)
        convert.to_native(made, tmp_path / f"again-{made.name}", verify=True)


@pytest.mark.parametrize("size", ["5 apples", "0", "-3GB", True, "1e9", "5.5GB"])
def test_shard_size_that_is_none(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected bytes, or a size like 5GB or 500MB"):
        convert.to_hf("demo", tmp_path / "out", shard_size=size)


def test_sizes() -> None:
    sizes: tuple[int | str, ...] = ("5GB", "500 MB", "2GiB", "17", 17, "3k", "8b")
    assert list(map(parse, sizes)) == [5 * 10**9, 5 * 10**8, 2**31, 17, 17, 3000, 8]


def test_names_without_model(tmp_path: Path) -> None:
    """As the published embedding models have them."""
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in random_checkpoint(QWEN3 | {"tie_word_embeddings": True}, 1).items()
    }
    write_checkpoint(tmp_path / "hf", QWEN3 | {"tie_word_embeddings": True}, tensors)
    folder = convert.to_native(tmp_path / "hf", tmp_path / "native", verify=True)
    assert_same_files(convert.to_hf(folder, tmp_path / "back"), tmp_path / "hf")


def test_what_is_read_otherwise_is_said(
    checkpoint: Copy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dual = {"chunk_size": 64, "local_size": 8, "original_max_position_embeddings": 64}
    source = checkpoint("modern/qwen2_gqa", dual_chunk_attention_config=dual)
    params = load(convert.to_native(source, tmp_path / "native"))
    assert "texts of up to 64 tokens; longer ones draw a warning" in capsys.readouterr().out
    assert params.config.max_length == 64


def test_projections_of_different_dtypes_become_one(
    checkpoint: Copy, edit: Edit, tmp_path: Path
) -> None:
    source = checkpoint("modern/qwen2_gqa")
    name = "model.layers.0.self_attn.k_proj.bias"
    edit(source / SINGLE, **{name: load_file(source / SINGLE)[name].astype(np.float16)})
    with pytest.raises(ValueError, match=rf"{name}.* differ in dtype, and .*; give --dtype"):
        convert.to_native(source, tmp_path / "no")
    folder = convert.to_native(source, tmp_path / "native", dtype="float32", verify=True)
    assert_holds(load(folder), source, dtype=jnp.dtype("float32"))


def test_extra_vocabulary(tmp_path: Path) -> None:
    """It goes with the checkpoint, whether it came at the conversion or when it was loaded."""
    extra = tmp_path / "more"
    extra.write_text(f"{base64.b64encode(b'extraordinary').decode()} 1266\n")
    folder = convert.to_native("demo", tmp_path / "native", extra_vocab_file=extra)
    params = load(folder)
    assert tokenizer_of(params).encode("extraordinary") == [1266]
    plain = load("demo", extra_vocab_file=extra)
    assert tokenizer_of(plain).encode("extraordinary") == [1266]
    save(plain, tmp_path / "saved")
    assert tokenizer_of(load(tmp_path / "saved")).encode("extraordinary") == [1266]
    extra.write_text(f"{base64.b64encode(b'ordinary').decode()} 1266\n")
    with pytest.raises(ValueError, match="has another extra vocabulary"):
        load(folder, extra_vocab_file=extra)
