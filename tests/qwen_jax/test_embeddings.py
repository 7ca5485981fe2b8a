"""Texts as vectors, as transformers makes them of the same network."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer as Oracle

import convert
import qwen_jax
from qwen_jax import embeddings
from qwen_jax.checkpoint import load, save
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.storage import pooling_config
from tests.assets import assets_of, tokenizer_of
from tests.conftest import Golden
from tests.qwen_jax.memorised_model import converted

MODULES = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling")]
NORMALIZE = {"type": "sentence_transformers.models.Normalize"}
QUERY = "Instruct: Find it.\nQuery:"


def embedding_folder(golden: Golden, small_folder: Path, made: Path) -> Path:
    """A folder as Qwen3-Embedding's: a tokenizer that ends texts, and how vectors are made."""
    shutil.copytree(golden("modern/qwen3"), made)
    tokenizer = Oracle.from_file(str(small_folder / "tokenizer.json"))
    content = json.loads(tokenizer.to_str())
    end = "<|endoftext|>"
    text = {"Sequence": {"id": "A", "type_id": 0}}
    ended = {"SpecialToken": {"id": end, "type_id": 0}}
    ids = {"id": end, "ids": [tokenizer.token_to_id(end)], "tokens": [end]}
    template = {"type": "TemplateProcessing", "single": [text, ended], "pair": [text, ended]}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    levels["use_regex"] = False
    both = [levels, template | {"special_tokens": {end: ids}}]
    content["post_processor"] = {"type": "Sequence", "processors": both}
    (made / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(small_folder / "tokenizer_config.json", made)
    (made / "modules.json").write_text(json.dumps([*MODULES, NORMALIZE]))
    (made / "1_Pooling").mkdir()
    modes = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    pooling = {"word_embedding_dimension": 64, "include_prompt": True, **modes}
    (made / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    prompts = {"prompts": {"query": QUERY, "document": ""}, "similarity_fn_name": "cosine"}
    (made / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return made


@pytest.fixture(scope="module")
def source(golden: Golden, small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding_folder(golden, small_folder, tmp_path_factory.mktemp("hf") / "embedding")


@pytest.fixture(scope="module")
def params(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Qwen:
    return converted(source, tmp_path_factory.mktemp("native") / "embedding")


@pytest.fixture(scope="module")
def pooled(golden: Golden) -> tuple[list[list[int]], dict[str, Any]]:
    """Texts, and what transformers makes of them."""
    outputs = load_file(golden("modern/pooled") / "golden.safetensors")
    cuts = np.cumsum(outputs["lengths"])[:-1]
    return [part.tolist() for part in np.split(outputs["ids"], cuts)], outputs


def test_the_vectors_of_transformers(params: Qwen, pooled: Any) -> None:
    texts, wanted = pooled
    got = qwen_jax.embed(params, texts)
    assert (got.dtype.name, got.shape) == ("float32", (5, 64))
    np.testing.assert_allclose(got, wanted["vectors"], atol=1e-5)
    cut = qwen_jax.embed(params, texts, dimensions=8)
    np.testing.assert_allclose(cut, wanted["vectors_8"], atol=1e-5)
    plain = qwen_jax.embed(params, texts[2], normalize=False)
    np.testing.assert_allclose(plain / np.linalg.norm(plain), wanted["vectors"][2], atol=1e-5)


def test_over_devices_and_in_pieces(
    params: Qwen, pooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mesh, a text longer than a call takes, and more texts than are held at once."""
    texts, wanted = pooled
    split = load(assets_of(params).folder, make_mesh(2, 1, 2, devices=jax.devices()[:4]))
    monkeypatch.setattr(embeddings, "CHUNK", 32)
    monkeypatch.setattr(embeddings, "_SLOTS", 2)
    np.testing.assert_allclose(qwen_jax.embed(split, texts), wanted["vectors"], atol=1e-5)


def test_a_text_has_an_end(params: Qwen, source: Path) -> None:
    oracle = Oracle.from_file(str(source / "tokenizer.json"))
    tokenizer = tokenizer_of(params)
    for text in ("The quick brown fox", "", "a<|im_end|>b"):
        ids = oracle.encode(text).ids
        assert embeddings.whole_ids(tokenizer, text) == ids
        assert tokenizer.encode_prompt(text) == ids[:-1]
    one, other = qwen_jax.embed(params, ["fox", "fox "])
    np.testing.assert_array_equal(one, qwen_jax.embed(params, oracle.encode("fox").ids))
    assert not np.allclose(one, other)


def test_how_vectors_are_made_is_kept(params: Qwen, source: Path, tmp_path: Path) -> None:
    """When it is converted, loaded, saved and converted back."""
    wanted = pooling_config.Pooling(True, {"query": QUERY, "document": ""})
    save(params, tmp_path / "saved")
    again = load(tmp_path / "saved", make_mesh(devices=jax.devices()[:1]))
    assert assets_of(params).pooling == assets_of(again).pooling == wanted
    assert tokenizer_of(again).end == tokenizer_of(params).end
    back = convert.to_hf(tmp_path / "saved", tmp_path / "back")
    for name in (*pooling_config.FILES, "tokenizer.json"):
        assert (back / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("modules.json", [*MODULES, {"type": "x.Dense"}], "wanted Transformer, Pooling and"),
        ("modules.json", {}, "wanted Transformer, Pooling and"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True}, r"\['mean_tokens'\]"),
        ("1_Pooling/config.json", {"pooling_mode": "cls"}, "pooling_mode is 'cls'"),
        ("config_sentence_transformers.json", {"prompts": {"query": 7}}, "prompts"),
    ],
)
def test_vectors_of_other_kinds(
    source: Path, tmp_path: Path, name: str, content: Any, wanted: str
) -> None:
    shutil.copytree(source, tmp_path / "other")
    (tmp_path / "other" / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=wanted):
        convert.to_native(tmp_path / "other", tmp_path / "native")


def test_a_newer_word_for_the_last_token(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "newer")
    (tmp_path / "newer" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    (tmp_path / "newer" / "modules.json").write_text(json.dumps(MODULES))
    assert pooling_config.read(tmp_path / "newer") == pooling_config.Pooling(
        False, {"query": QUERY, "document": ""}
    )


@pytest.mark.parametrize(
    ("texts", "how", "wanted"),
    [
        ([[1, 2]], {"dimensions": 65}, "got dimensions 65, this checkpoint has 1 to 64"),
        ([[1, 2]], {"dimensions": 0}, "got dimensions 0"),
        ([[1, 2]], {"dimensions": True}, "got dimensions True"),
        ([[1] * 257], {}, "has 257 tokens, this checkpoint reads 256 at most"),
        ([[512]], {}, "wanted 0 to 511"),
        ([[]], {}, "wanted at least one token"),
        ([], {}, "got nothing"),
    ],
)
def test_what_cannot_be_embedded(params: Qwen, texts: Any, how: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        qwen_jax.embed(params, texts, **how)
