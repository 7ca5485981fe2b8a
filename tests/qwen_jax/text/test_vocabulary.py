"""Reading vocabulary files: what is read, and what is refused rather than read wrongly."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.vocabulary import V1_SPECIALS, Vocabulary, read
from tests.assets import read_tokenizer, read_vocabulary

BYTES = [bytes([byte]) for byte in range(256)]


def write_ranks(path: Path, tokens: list[bytes], start: int = 0) -> Path:
    lines = (f"{base64.b64encode(t).decode()} {n}\n" for n, t in enumerate(tokens, start))
    path.write_text("".join(lines))
    return path


def edit(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / name).read_text("utf-8"))
    (folder / name).write_text(json.dumps(content | changes))


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small tokenizer that a test may spoil."""
    return Path(shutil.copytree(small_folder, tmp_path / "small"))


def test_a_folder_without_tokenizer_files_has_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert Tokenizer.load(tmp_path) is None


def test_a_folder_with_half_a_tokenizer_is_an_error(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"but no vocabulary; add qwen\.tiktoken"):
        Tokenizer.load(folder)


def test_v1_specials_follow_the_ranks(tmp_path: Path) -> None:
    write_ranks(tmp_path / "qwen.tiktoken", [*BYTES, b"ab"])
    vocabulary = read_vocabulary(tmp_path)
    assert list(vocabulary.specials.values()) == list(range(257, 257 + 208))
    assert list(vocabulary.specials)[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert list(vocabulary.specials)[-1] == "<|extra_204|>"


def test_the_real_vocabulary_has_the_published_ids(real: Tokenizer) -> None:
    assert real.vocab_size == 151851
    assert real.end_of_text == 151643
    assert real.specials["<|extra_204|>"] == 151850


def test_extra_tokens_come_after_the_specials_and_known_ones_are_skipped(tmp_path: Path) -> None:
    write_ranks(tmp_path / "qwen.tiktoken", [*BYTES, b"ab"])
    first = 257 + len(V1_SPECIALS)
    extra = write_ranks(tmp_path / "extra.tiktoken", [b"ab", b"abc"], start=first - 1)
    extra.write_text(extra.read_text() + f"{base64.b64encode(b'xy').decode()} 7\n")  # used id
    tokenizer = read_tokenizer(tmp_path, extra)
    assert tokenizer.vocab_size == first + 1
    assert tokenizer.encode("abc") == [first]
    assert tokenizer.encode("xy") == [ord("x"), ord("y")]
    assert tokenizer.decode([first], skip_specials=True) == "abc"


def test_extra_tokens_leave_no_gap(tmp_path: Path) -> None:
    write_ranks(tmp_path / "qwen.tiktoken", BYTES)
    extra = write_ranks(tmp_path / "extra.tiktoken", [b"ab"], start=500)
    with pytest.raises(ValueError, match="leaves id 464 free"):
        read(tmp_path, extra)


def test_the_documented_extra_tokens_join_the_real_vocabulary(
    real_vocabulary: Path, tmp_path: Path
) -> None:
    words = ["一只猫", "只猫", "是一只猫", "我是一只猫", "你是一只猫", "他是一只猫"]
    extra = write_ranks(tmp_path / "extra", [word.encode() for word in words], start=151851)
    assert read_tokenizer(real_vocabulary, extra).encode("我是一只猫") == [151854]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\nsize 2561218\n", "git-lfs pointer"),
        (b"QQ== 0\nQg== 2\n", "does not count its tokens"),
        (b"QQ== 0\nQg== 1\n", "lacks the single bytes"),
    ],
)
def test_a_broken_v1_vocabulary_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_both_later_formats_hold_the_same_vocabulary(folder: Path) -> None:
    whole = read_vocabulary(folder)
    (folder / "tokenizer.json").unlink()
    assert read(folder) == whole
    assert whole.names == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert whole.markup == {"<think>", "</think>", "<tool_call>", "</tool_call>"}


def test_added_tokens_json_stands_in_for_the_decoder_table(folder: Path) -> None:
    whole = read_vocabulary(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    (folder / "added_tokens.json").write_text(json.dumps(whole.specials))
    assert (read_vocabulary(folder).specials, read_vocabulary(folder).markup) == (
        whole.specials,
        set(),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": None}, "normalizer: got None"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "pre_tokenizer: got"),
        ({"decoder": None}, "decoder: got None"),
        ({"post_processor": {"type": "TemplateProcessing"}}, "post_processor: got"),
    ],
)
def test_another_kind_of_tokenizer_json_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder, "tokenizer.json", **changes)
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
        {"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}]}},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}},
        {"post_processor": None, "truncation": {"max_length": 9}},
    ],
)
def test_other_spellings_of_the_same(folder: Path, changes: dict[str, Any]) -> None:
    """transformers 5 writes a post-processor that does nothing."""
    whole = read_vocabulary(folder)
    edit(folder, "tokenizer.json", **changes)
    assert read(folder) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "WordPiece"}, "model type: got"),
        ({"dropout": 0.1, "byte_fallback": True}, "model settings.*dropout.*byte_fallback"),
        ({"temperature": 1}, "model keys.*temperature"),
    ],
)
def test_another_kind_of_model_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    edit(folder, "tokenizer.json", model=model | changes)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_an_added_token_that_swallows_blanks_is_refused(folder: Path) -> None:
    added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    edit(folder, "tokenizer.json", added_tokens=[{**added[0], "lstrip": True}, *added[1:]])
    with pytest.raises(ValueError, match=r"match loosely: got \['<\|endoftext\|>'\]"):
        read(folder)


def test_ids_out_of_merge_order_are_refused(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    model["merges"][0], model["merges"][-1] = model["merges"][-1], model["merges"][0]
    edit(folder, "tokenizer.json", model=model)
    with pytest.raises(ValueError, match="another order than its merges"):
        read(folder)


def test_vocab_and_merges_of_another_tokenizer_are_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    with pytest.raises(ValueError, match="tokenizer_class 'GPT2Tokenizer', wanted Qwen2Tokenizer"):
        read(folder)


def test_a_file_that_is_not_json_is_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        read(folder)


def test_extra_tokens_for_a_later_model_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"extends qwen\.tiktoken"):
        read(folder, extra_vocab_file="extra.tiktoken")


def test_two_tokens_cannot_share_an_id() -> None:
    with pytest.raises(ValueError, match="share an id"):
        Vocabulary({byte: n for n, byte in enumerate(BYTES)}, {"<|endoftext|>": 255})


def test_the_template_file_goes_before_the_config_and_default_before_others(folder: Path) -> None:
    assert read_vocabulary(folder).chat_template is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    edit(folder, "tokenizer_config.json", chat_template=named)
    assert read_vocabulary(folder).chat_template == "D"
    edit(folder, "tokenizer_config.json", chat_template="one")
    assert read_vocabulary(folder).chat_template == "one"
    (folder / "chat_template.jinja").write_text("file")
    assert read_vocabulary(folder).chat_template == "file"


def test_templates_without_a_default_are_refused(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", chat_template=[{"name": "rag", "template": ""}])
    with pytest.raises(ValueError, match=r"\['rag'\] but no default"):
        read(folder)
