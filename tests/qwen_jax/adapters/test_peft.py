"""PEFT's folders: read without trust, written as PEFT writes them."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from qwen_jax.adapters import attach, peft
from qwen_jax.adapters.peft_config import FILE
from qwen_jax.decoding import decode
from qwen_jax.nn.lora import fuse
from qwen_jax.nn.model import Qwen
from tests.adapters import assert_same
from tests.conftest import Golden
from tests.qwen_jax.networks import assemble, distance
from tests.reference import read_checkpoint

GOLDENS = ["peft/lora", "peft/lora_emb"]
H = "base_model.model.transformer.h."
A, B = H + "0.attn.c_attn.lora_A.weight", H + "0.attn.c_attn.lora_B.weight"
ANY = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def base(golden: Golden) -> Qwen:
    return assemble(*read_checkpoint(golden("peft/base")))


@pytest.fixture
def folder(golden: Golden, tmp_path: Path) -> Path:
    return shutil.copytree(golden("peft/lora_emb"), tmp_path / "adapter")


def edit(folder: Path, **tensors: np.ndarray | None) -> None:
    new = load_file(folder / peft.WEIGHTS) | tensors
    save_file({k: v for k, v in new.items() if v is not None}, folder / peft.WEIGHTS)


def configure(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(content | changes))


# --- the goldens ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GOLDENS)
def test_logits(golden: Golden, base: Qwen, name: str) -> None:
    outputs = load_file(golden(name) / "golden.safetensors")
    params = attach.add(base, peft.read(golden(name)), model_type="qwen")
    assert distance(decode.score(params, outputs["input_ids"]), outputs["logits"]) < 2e-5
    merged = decode.score(fuse(params), outputs["input_ids"])
    assert distance(merged, outputs["merged_logits"]) < 2e-5
    plain = decode.score(base, outputs["input_ids"])
    assert distance(plain, outputs["logits"]) > 0.1


@pytest.mark.parametrize("name", GOLDENS)
def test_round_trip(golden: Golden, base: Qwen, name: str, tmp_path: Path) -> None:
    """Read, add, extract, write: the file is the one PEFT wrote, byte for byte."""
    adapter = peft.read(golden(name))
    params = attach.add(base, adapter, model_type="qwen")
    back = attach.extract(params, adapter.settings, model_type="qwen")
    peft.write(back, tmp_path / "back")
    written = (tmp_path / "back" / peft.WEIGHTS).read_bytes()
    assert written == (golden(name) / peft.WEIGHTS).read_bytes()
    assert_same(peft.read(tmp_path / "back"), adapter)
    ours, theirs = (json.loads((f / FILE).read_text()) for f in (tmp_path / "back", golden(name)))
    theirs["target_modules"].sort()
    assert {key: theirs[key] for key in ours} == ours
    left = {theirs[key] or None for key in theirs.keys() - ours.keys() - {"loftq_config"}}
    assert left == {None, "megatron.core"}


def test_written_aside(golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = peft.read(golden("peft/lora"))
    peft.write(adapter, tmp_path / "one")
    with pytest.raises(FileExistsError, match="one exists; choose another folder"):
        peft.write(adapter, tmp_path / "one")

    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("qwen_jax.storage.safetensors_file.write", fail)
    with pytest.raises(OSError, match=r"two is full: .* left, .* needed; make room"):
        peft.write(adapter, tmp_path / "two")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_bfloat16(golden: Golden, tmp_path: Path) -> None:
    """Other types survive reading and writing."""
    adapter = peft.read(golden("peft/lora"))
    half = jax.tree.map(lambda x: np.asarray(x).astype(jax.numpy.bfloat16), dict(adapter.deltas))
    made = peft.Adapter(adapter.settings, half, {})
    peft.write(made, tmp_path / "half")
    assert_same(peft.read(tmp_path / "half"), made)


# --- broken ones ------------------------------------------------------------------------------
def test_no_folder(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nothing"):
        peft.read(tmp_path / "nothing")
    (folder / peft.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"pickle.*safe_serialization=True"):
        peft.read(folder)
    (folder / FILE).unlink()
    with pytest.raises(ValueError, match=f"no adapter: it has no {FILE}"):
        peft.read(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"r": NaN}'])
def test_settings_that_are_none(folder: Path, content: bytes) -> None:
    (folder / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=FILE):
        peft.read(folder)


def test_truncated(folder: Path) -> None:
    whole = (folder / peft.WEIGHTS).read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        (folder / peft.WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut off"):
            peft.read(folder)


ONES = np.ones((8, 64), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({B: None}, r"transformer.h.0.attn.c_attn has lora_A alone"),
        ({A: None}, r"transformer.h.0.attn.c_attn has lora_B alone"),
        ({A: ONES[:7]}, r"lora_A \[7, 64\], lora_B \[192, 8\]; .* gives it rank 8"),
        ({A: ONES[:7], B: np.ones((192, 7), np.float32)}, "gives it rank 8"),
        ({A: ONES[0]}, r"lora_A \[64\]"),
        ({A: np.ones((8, 8, 8), np.float32)}, r"lora_A \[8, 8, 8\]"),
        ({A: ONES.astype(np.float64)}, "is float64, expected float32"),
        ({A: ONES.astype(np.int32)}, "is int32"),
        ({"transformer.h.0.x.weight": ONES}, "tensor transformer.h.0.x.weight is of a kind"),
        ({H + "0.attn.c_attn.lora_magnitude_vector": ONES}, "magnitude_vector is of a kind"),
        ({H + "0.attn.c_attn.lora_B.bias": ONES}, "lora_B.bias is of a kind"),
        ({"base_model.model.transformer.wte.lora_embedding_A": ONES}, "embedding_A is of a kind"),
        ({"base_model.model.x.lora_A.other.weight": ONES}, "lora_A.other.weight is of a kind"),
        ({"base_model.model.../../x.weight": ONES}, "/x.weight is of a kind"),
        ({H + "0.attn.c_attn.weight": ONES}, "c_attn is there twice, adapted and whole"),
        ({"base_model.model.lm_head.weight": None}, "modules_to_save has 'lm_head'.*lost"),
    ],
)
def test_tensors(folder: Path, tensors: dict[str, Any], message: str) -> None:
    edit(folder, **tensors)
    with pytest.raises(ValueError, match=message):
        peft.read(folder)


def test_empty(folder: Path) -> None:
    save_file({}, folder / peft.WEIGHTS)
    configure(folder, modules_to_save=None)
    with pytest.raises(ValueError, match="is empty"):
        peft.read(folder)


def test_all_problems_at_once(folder: Path) -> None:
    edit(folder, **{A: None, H + "1.mlp.w1.lora_B.weight": None, "x": ONES})
    with pytest.raises(ValueError, match=r"(?s)tensor x .*c_attn has lora_B.*w1 has lora_A"):
        peft.read(folder)
    configure(folder, r=9)
    edit(folder, **{f"{H}{i}.mlp.w3.lora_A.weight": ONES for i in range(40)})
    with pytest.raises(ValueError, match=r"and [0-9]+ more"):
        peft.read(folder)


@pytest.mark.parametrize(
    ("rank", "message"),
    [(7, "gives it rank"), (10**9, "gives it rank"), (10**400, "r is 1000.*, expected a whole")],
    ids=["7", "10**9", "10**400"],
)
def test_rank_of_the_settings(folder: Path, rank: int, message: str) -> None:
    configure(folder, r=rank, use_rslora=True)
    with pytest.raises(ValueError, match=message):
        peft.read(folder)


def test_embedding_that_no_setting_names(folder: Path, tmp_path: Path) -> None:
    """PEFT stores a resized or adapted model's embedding by itself."""
    configure(folder, modules_to_save=["lm_head"])
    adapter = peft.read(folder)
    assert adapter.settings.modules_to_save == ("lm_head", "transformer.wte")
    peft.write(adapter, tmp_path / "again")
    assert_same(peft.read(tmp_path / "again"), adapter)


@ANY
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=8), st.booleans())
def test_any_bytes(golden: Golden, tmp_path: Path, at: int, data: bytes, cut: bool) -> None:
    """Wherever a header is damaged, it is refused, or still an adapter of the same file."""
    source, broken = golden("peft/lora"), tmp_path / "broken"
    broken.mkdir(exist_ok=True)
    shutil.copy(source / FILE, broken)
    whole = (source / peft.WEIGHTS).read_bytes()
    tail = b"" if cut else whole[at + len(data) :]
    (broken / peft.WEIGHTS).write_bytes(whole[:at] + data + tail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            adapter = peft.read(broken)
        except ValueError:
            return
    for a, b in adapter.deltas.values():
        assert (a.shape[0], b.shape[1]) == (8, 8)
