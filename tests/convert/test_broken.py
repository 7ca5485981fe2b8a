"""Broken checkpoints: each is refused with a sentence, and nothing is left on the disk."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import convert
from qwen_jax import bundled
from tests.conftest import Golden
from tests.convert.conftest import Copy, Edit

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"

Refuses = Callable[..., str]  # the fixture


@pytest.fixture
def refuses(tmp_path: Path) -> Refuses:
    """refuses(folder, *messages): one error has all of them; nothing new lies on the disk."""

    def check(folder: Path, *messages: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((ValueError, OSError)) as caught:
            convert.to_native(folder, tmp_path / "out")
        for message in messages:
            assert re.search(message, str(caught.value)), caught.value
        assert sorted(tmp_path.rglob("*")) == before
        return str(caught.value)

    return check


def test_truncated_shard(checkpoint: Copy, refuses: Refuses) -> None:
    folder = checkpoint("v1/base")
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[:-100])
    refuses(folder, f"{SECOND} .*cut off; download it again")
    (folder / SECOND).write_bytes(content[:50])
    refuses(folder, f"{SECOND} .*cut off in the header")


def test_header_bomb(checkpoint: Copy, refuses: Refuses) -> None:
    folder = checkpoint("v1/base")
    (folder / FIRST).write_bytes((2**50).to_bytes(8, "little") + b"{}")
    refuses(folder, f"{FIRST} is cut off in the header")


def test_every_problem_is_named(checkpoint: Copy, edit: Edit, refuses: Refuses) -> None:
    folder = checkpoint("v1/bf16")
    edit(
        folder / "model.safetensors",
        **{
            "transformer.h.1.ln_1.weight": None,
            "transformer.h.1.ln_9.weight": np.zeros(64, np.float32),
            "transformer.h.0.attn.c_attn.bias": np.zeros(191, np.float32),
            "transformer.ln_f.weight": np.zeros(64, np.float64),
        },
    )
    refuses(
        folder,
        r"transformer.h.1.ln_1.weight \[64\] is missing",
        r"transformer.h.1.ln_9.weight is unknown",
        r"c_attn.bias has shape \[191\], the config asks for \[192\]",
        r"ln_f.weight has dtype float64, expected float32, bfloat16, float16",
    )


def test_long_lists_are_cut(checkpoint: Copy, refuses: Refuses) -> None:
    message = refuses(checkpoint("v1/bf16", num_hidden_layers=40), "and [0-9]+ more")
    assert message.count("\n") < 25


def test_parts_of_one_leaf_differ_in_dtype(checkpoint: Copy, edit: Edit, refuses: Refuses) -> None:
    folder = checkpoint("modern/qwen2_gqa")
    name = "model.layers.0.self_attn.k_proj.bias"
    edit(folder / "model.safetensors", **{name: np.zeros(32, np.float16)})
    refuses(folder, f"{name}.* differ in dtype")


def test_tensor_in_two_shards(checkpoint: Copy, edit: Edit, refuses: Refuses) -> None:
    folder = checkpoint("v1/base")
    name = "transformer.wte.weight"
    edit(folder / SECOND, **{name: load_file(folder / FIRST)[name]})
    refuses(folder, f"{name} is in {FIRST} and again in {SECOND}")


def test_tensor_twice_in_one_header(checkpoint: Copy, refuses: Refuses) -> None:
    folder = checkpoint("v1/bf16")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    (entry,) = re.findall(rb'"transformer.ln_f.weight":\{.*?\}', content)
    header = content[8 : 8 + length].rstrip()[:-1] + b"," + entry + b"}"
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    refuses(folder, "'transformer.ln_f.weight' twice")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("../model.safetensors", r"wte.weight\] is '../model.safetensors', expected the name"),
        ("/etc/passwd", "is '/etc/passwd', expected the name of a file"),
        ("a/b.safetensors", "expected the name of a file, NAME.safetensors"),
        ("..", "expected the name of a file"),
        ("pytorch_model.bin", "expected the name of a file"),
        (3, r"weight_map\[transformer.wte.weight\] is 3"),
        (SECOND, f"places transformer.wte.weight in {SECOND}, which does not hold it"),
        ("model-9.safetensors", "No such file"),
    ],
)
def test_index(checkpoint: Copy, refuses: Refuses, place: int | str, message: str) -> None:
    folder = checkpoint("v1/base")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["transformer.wte.weight"] = place
    (folder / INDEX).write_text(json.dumps(index))
    refuses(folder, message)


def test_index_without_a_tensor(checkpoint: Copy, refuses: Refuses) -> None:
    folder = checkpoint("v1/base")
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["transformer.wte.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    refuses(folder, f"transformer.wte.weight is in {FIRST}, but not in {INDEX}")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 1}'])
def test_index_of_another_form(checkpoint: Copy, refuses: Refuses, content: str) -> None:
    folder = checkpoint("v1/base")
    (folder / INDEX).write_text(content)
    refuses(folder, INDEX)


def test_config(checkpoint: Copy, refuses: Refuses) -> None:
    refuses(checkpoint("v1/base", rotary_style="new"), "unknown keys .'rotary_style'.")
    refuses(checkpoint("v1/bf16", model_type="llama"), "model_type 'llama'")
    folder = checkpoint("modern/qwen3")
    (folder / "config.json").write_text("{")
    refuses(folder, "config.json is not JSON")
    (folder / "config.json").unlink()
    refuses(folder, "config.json")


def test_generation_config(checkpoint: Copy, refuses: Refuses) -> None:
    folder = checkpoint("v1/bf16")
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_p": 7}')
    refuses(folder, "generation_config.json cannot be read: .*top_p is 7")


def test_tokenizer_of_another_checkpoint(checkpoint: Copy, refuses: Refuses) -> None:
    folder = checkpoint("v1/bf16")  # 512 rows; the demo's tokens are 1266
    shutil.copy(bundled.CHECKPOINT / "qwen.tiktoken", folder)
    refuses(folder, "tokenizer's ids reach 1265, the embedding has 512 rows")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "a.pt"])
def test_pickles(checkpoint: Copy, refuses: Refuses, name: str) -> None:
    folder = checkpoint("v1/bf16")
    (folder / "model.safetensors").rename(folder / name)
    refuses(folder, f"{name} is a pickle", "safe_serialization=True")


def test_no_weights(checkpoint: Copy, refuses: Refuses) -> None:
    folder = checkpoint("v1/bf16")
    (folder / "model.safetensors").unlink()
    refuses(folder, "there is no model.safetensors")


def test_not_a_checkpoint(tmp_path: Path, refuses: Refuses, golden: Golden) -> None:
    refuses(tmp_path / "nothing", "there is no folder", "Qwen/Qwen-7B")
    (tmp_path / "file").write_text("")
    refuses(tmp_path / "file", "is a file")
    made = convert.to_native(golden("v1/bf16"), tmp_path / "native")
    refuses(made, "is a native checkpoint already")
    with pytest.raises(ValueError, match="is a Hugging Face checkpoint"):
        convert.to_hf(golden("v1/bf16"), tmp_path / "back")


def test_git_lfs_pointer(checkpoint: Copy, refuses: Refuses) -> None:
    folder = checkpoint("v1/bf16")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    refuses(folder, "git lfs pull")


def test_links_of_a_hub_cache_are_followed(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for file in golden("v1/base").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert convert.to_native(tmp_path / "snapshot", tmp_path / "out", verify=True).is_dir()


def test_verify_finds_one_wrong_bit(golden: Golden, tmp_path: Path) -> None:
    source = shutil.copytree(golden("v1/bf16"), tmp_path / "hf")
    out = convert.to_native(source, tmp_path / "out")
    assert convert.to_native(source, out, verify=True) == out
    tensors = load_file(source / "model.safetensors")
    for name in ("transformer.h.1.attn.c_attn.weight", "lm_head.weight"):
        changed = {name: tensors[name].copy()}
        changed[name].view(np.uint16)[3, 5] ^= 1
        save_file(tensors | changed, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"differs from {name}"):
            convert.to_native(source, out, verify=True)
    (source / "generation_config.json").unlink()
    with pytest.raises(ValueError, match="config, generation or tokenizer files differ"):
        convert.to_native(source, out, verify=True)
