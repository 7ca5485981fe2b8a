"""An adapter merged into the Hugging Face checkpoint: W + scale * B A, rounded once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import convert
from convert.__main__ import main
from qwen_jax.adapters import attach, peft
from qwen_jax.adapters.peft import Adapter
from qwen_jax.adapters.peft_config import LoraConfig
from qwen_jax.checkpoint import load
from qwen_jax.files.sizes import on_disk, size
from qwen_jax.nn.lora import fuse
from qwen_jax.nn.tree import named_leaves
from qwen_jax.storage.hf_names import tensor_views
from tests.adapters import MODERN, V1, merged, random_adapter
from tests.conftest import Golden
from tests.convert import small
from tests.reference import Tensors, random_checkpoint, read_checkpoint, write_checkpoint

CONFIGS = {"v1": small.V1, "qwen2": small.QWEN2, "tied": small.QWEN3}
SETTINGS = {
    "v1": LoraConfig(3, 2.0, V1, modules_to_save=("wte", "lm_head")),
    "qwen2": LoraConfig(3, 2.0, MODERN, rslora=True, rank_pattern={"q_proj": 2}),
    "tied": LoraConfig(3, 2.0, ("q_proj", "down_proj")),
}

Made = Callable[..., tuple[Tensors, Adapter]]  # the fixture


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """made(name, dtype) -> a checkpoint's tensors, the adapter beside it in adapter/."""

    def make(name: str, dtype: type[Any] = np.float32) -> tuple[Tensors, Adapter]:
        tensors = {k: v.astype(dtype) for k, v in random_checkpoint(CONFIGS[name], seed=1).items()}
        write_checkpoint(tmp_path / "hf", CONFIGS[name], tensors)
        convert.to_native(tmp_path / "hf", tmp_path / "native")
        adapter = random_adapter(tensors, SETTINGS[name])
        peft.write(adapter, tmp_path / "adapter")
        return tensors, adapter

    return make


@pytest.mark.parametrize("name", CONFIGS)
def test_float32(made: Made, tmp_path: Path, name: str) -> None:
    tensors, adapter = made(name)
    main(
        to_hf=str(tmp_path / "native"), out=str(tmp_path / "out"), adapter=str(tmp_path / "adapter")
    )
    config, got = read_checkpoint(tmp_path / "out")
    assert config == CONFIGS[name]
    assert list(got) == list(read_checkpoint(tmp_path / "hf")[1])
    for tensor, wanted in merged(tensors, adapter).items():
        assert got[tensor].dtype == np.float32
        np.testing.assert_allclose(got[tensor], wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
        changed = tensor in adapter.saved or tensor.removesuffix(".weight") in adapter.deltas
        assert np.array_equal(got[tensor], tensors[tensor]) is not changed


@pytest.mark.parametrize("name", CONFIGS)
def test_as_fused(made: Made, tmp_path: Path, name: str) -> None:
    """What is exported is what `fuse` makes of the loaded network, to the last bit or two."""
    made(name)
    out = convert.to_hf(tmp_path / "native", tmp_path / "out", tmp_path / "adapter")
    params = fuse(load(tmp_path / "native", adapter=tmp_path / "adapter"))
    got, leaves = read_checkpoint(out)[1], named_leaves(params)
    for part in tensor_views(params.config, CONFIGS[name]["model_type"]):
        leaf, tensor = part.views(np.asarray(leaves[part.leaf]), got[part.tensor])
        np.testing.assert_allclose(tensor, leaf, rtol=0, atol=3e-7 * np.abs(leaf).max())


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_rounded_once(made: Made, tmp_path: Path, dtype: type[Any]) -> None:
    tensors, adapter = made("qwen2", dtype)
    out = convert.to_hf(tmp_path / "native", tmp_path / "out", tmp_path / "adapter")
    for tensor, wanted in merged(tensors, adapter).items():
        got = load_file(out / "model.safetensors")[tensor]
        assert got.dtype == dtype
        differ = got != wanted.astype(dtype)  # where float32's last digit decides
        assert differ.mean() < 2e-3


def test_golden_shards(golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The original's files: three shards and their index."""
    native = convert.to_native(golden("peft/base"), tmp_path / "native")
    capsys.readouterr()
    out = convert.to_hf(native, tmp_path / "out", golden("peft/lora_emb"))
    assert capsys.readouterr().out.startswith(f"writing {out}: {size(on_disk(out))} in")
    source = golden("peft/base")
    assert sorted(f.name for f in out.iterdir()) == sorted(f.name for f in source.iterdir())
    index = "model.safetensors.index.json"
    assert (out / index).read_bytes() == (source / index).read_bytes()
    again = load(convert.to_native(out, tmp_path / "again"))
    wanted = fuse(load(native, adapter=golden("peft/lora_emb")))
    np.testing.assert_array_equal(again.embed, wanted.embed)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (np.float16, 1e6, "not finite in float16"),
        (np.float32, np.nan, "not finite in float32"),
    ],
)
def test_not_finite(
    made: Made, tmp_path: Path, dtype: type[Any], value: float, message: str
) -> None:
    _, adapter = made("v1", dtype)
    adapter.deltas["transformer.h.1.mlp.w1"][0][0, 0] = value
    peft.write(adapter, tmp_path / "other")
    with pytest.raises(ValueError, match=f"blocks.1.mlp.up.kernel with the adapter is {message}"):
        convert.to_hf(tmp_path / "native", tmp_path / "out", tmp_path / "other")
    assert not list(tmp_path.glob("out*"))


def test_misfits_leave_nothing(made: Made, golden: Golden, tmp_path: Path) -> None:
    made("qwen2")
    with pytest.raises(ValueError, match="does not fit this network, a qwen2 of 2 layers"):
        convert.to_hf(tmp_path / "native", tmp_path / "out", golden("peft/lora"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        convert.to_hf(tmp_path / "native", tmp_path / "out", tmp_path / "nothing")
    assert not list(tmp_path.glob("out*"))


def test_belongs_to_the_way_back() -> None:
    with pytest.raises(ValueError, match="--adapter belongs to --to-hf"):
        main(hf="demo", adapter="a")


def test_one_leaf_at_a_time(made: Made, tmp_path: Path) -> None:
    """The adapter stays in its file until a leaf asks for its part."""
    made("v1")
    adapter = peft.read(tmp_path / "adapter")
    arrays = [*adapter.saved.values(), *(x for pair in adapter.deltas.values() for x in pair)]
    for array in arrays:
        while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap)
    params = load(tmp_path / "native")
    change = attach.merger(adapter, params.config, "qwen")
    kernel = np.asarray(params.blocks[0].attn_norm.scale)
    assert change("blocks.0.attn_norm.scale", kernel) is kernel
