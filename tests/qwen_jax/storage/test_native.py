"""Native folders that were damaged, cut off or edited: each is refused with a sentence."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import convert
from qwen_jax import bundled
from qwen_jax.checkpoint import load
from qwen_jax.storage import native, native_layout
from qwen_jax.storage.native import Manifest
from qwen_jax.storage.origin import Origin
from tests.conftest import Golden


@pytest.fixture(scope="module")
def folder(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native checkpoint."""
    return convert.to_native(golden("v1/base"), tmp_path_factory.mktemp("native") / "base")


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return shutil.copytree(folder, tmp_path / "broken")


def edit_manifest(folder: Path, change: Callable[..., Any]) -> None:
    file = folder / native_layout.MANIFEST
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(native.sealed(content)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=1), r"python -m convert --hf MODEL --out FOLDER"),
        (lambda m: m.pop("format"), "convert the checkpoint again"),
        (lambda m: m.pop("files"), "damaged"),
        (lambda m: m.update(leaves=3), "damaged"),
        (lambda m: m["leaves"]["embed"].update(dtype="int9"), "damaged"),
        (lambda m: m["leaves"]["embed"].update(shape=[-1]), "damaged"),
        (lambda m: m["files"].update({"../x": ""}), "no plain file name"),
        (lambda m: m["shards"].update({"/x": {"tensors": {}}}), "no plain file name"),
        (lambda m: m.pop("pieces"), "damaged"),
        (lambda m: m.update(pieces=7), "damaged"),
        (lambda m: m["leaves"].pop("norm.scale"), r"norm.scale \[64\] is missing"),
        (lambda m: m["leaves"].update(x=m["leaves"]["embed"]), "x is unknown to this network"),
        (lambda m: m["leaves"]["embed"].update(shape=[8, 8]), r"embed has shape \[8, 8\]"),
        (lambda m: m["leaves"]["embed"].update(dtype="bfloat16"), "embed holds arrays of other"),
        (lambda m: m["pieces"].update(norm=m["pieces"]["embed"]), "norm.* its hash differs"),
    ],
)
def test_manifest(broken: Path, change: Callable[..., Any], message: str) -> None:
    edit_manifest(broken, change)
    with pytest.raises(ValueError, match=message):
        load(broken)


def test_every_problem_is_named(broken: Path) -> None:
    native_layout.piece_file(broken, "head").unlink()
    (broken / "generation_config.json").unlink()
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 354}))
    shutil.copy(bundled.CHECKPOINT / "qwen.tiktoken", broken)
    with pytest.raises(ValueError) as caught:
        load(broken)
    for message in (
        "weights/head: [Errno 2] No such file",
        "file generation_config.json is missing",
        "file config.json is not what was written",
        "blocks.1.mlp.down.kernel has shape [64, 176], the config asks for [64, 177]",
        "the tokenizer's ids reach 1265, the embedding has 512 rows",
    ):
        assert message in str(caught.value)


def test_manifest_that_was_edited_by_hand(broken: Path) -> None:
    file = broken / native_layout.MANIFEST
    file.write_text(file.read_text().replace("model-00001", "model-00009"))
    with pytest.raises(ValueError, match="is damaged: its hash differs; copy the folder again"):
        load(broken)


def test_no_flipped_bit_is_loaded(broken: Path) -> None:
    """A hundred bits of all files, the smallest ones' as often as the largest's."""
    random = np.random.default_rng(0)
    files = sorted(file for file in broken.rglob("*") if file.is_file())
    for number in range(100):
        file = files[number % len(files)]
        content = bytearray(file.read_bytes())
        at, bit = random.integers(len(content)), random.integers(8)
        content[at] ^= 1 << bit
        file.write_bytes(content)
        with pytest.raises(ValueError):  # each kind of damage has words of its own
            load(broken)
        content[at] ^= 1 << bit
        file.write_bytes(content)
    load(broken)


def test_damaged_weights(broken: Path) -> None:
    piece = native_layout.piece_file(broken, "blocks.0")
    content = bytearray(piece.read_bytes())
    piece.write_bytes(content[:-1])
    with pytest.raises(
        ValueError, match=r"blocks\.0\.safetensors has \d+ bytes of data, its header"
    ):
        load(broken)
    content[-1] ^= 1
    piece.write_bytes(content)
    message = r"blocks\.0\.safetensors is damaged: blocks\.0\.\S+ is not what was written"
    with pytest.raises(ValueError, match=message):
        load(broken)


def test_a_folder_from_before_its_origin_was_sealed(broken: Path) -> None:
    """It is read as it was; what lies beside it says where it came from."""
    manifest = Manifest.read(broken)
    assert Origin.FILE in manifest.files
    older = {name: hash for name, hash in manifest.files.items() if name != Origin.FILE}
    dataclasses.replace(manifest, files=older).seal(broken)
    load(broken)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_cpu_has_the_files_pages(folder: Path) -> None:
    """Nothing is copied, and what a program does with an array's memory stays with it."""
    file = native_layout.piece_file(folder, "embed").resolve()
    before = file.read_bytes()
    params = load(folder)
    assert str(file) in Path("/proc/self/maps").read_text()
    wanted = np.asarray(params.embed) * 2
    doubled = jax.jit(lambda x: x * 2, donate_argnums=0)(params.embed)
    np.testing.assert_array_equal(doubled, wanted)
    assert file.read_bytes() == before
