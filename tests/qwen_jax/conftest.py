"""Vocabularies: the real one where it is installed, a small one trained here; and data files."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Oracle

from qwen_jax.text.byte_level import PATTERN
from qwen_jax.text.tokenizer import Tokenizer

Data = Callable[..., Path]  # the fixture

SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.",
    "def encode(text):\n    return [token for token in text]\n\n\n# user system assistant tool",
    "你好，世界。我是一只猫，你是一只猫，他也是一只猫。",
    "Café, naïve, Ærøskøbing; 3.14159 and 2.71828!  We'll see\tI'M SURE\r\n",
]
SPECIALS = "<|endoftext|> <|im_start|> <|im_end|>".split()
MARKUP = "<think> </think> <tool_call> </tool_call>".split()


@pytest.fixture(scope="session")
def real_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Qwen's own qwen.tiktoken, taken from the installed dashscope package."""
    package = importlib.util.find_spec("dashscope")  # finds it without importing it
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the real vocabulary: pip install 'qwen_jax[test]' (dashscope holds it)")
    file = Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found == SHA256, f"{file} has sha256 {found}, wanted {SHA256}"
    return Path(shutil.copy(file, tmp_path_factory.mktemp("qwen"))).parent


@pytest.fixture(scope="session")
def real(real_vocabulary: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(real_vocabulary)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer in the form of Qwen1.5 and later: both of its file formats, no template."""
    oracle = Oracle(models.BPE())
    oracle.normalizer = normalizers.NFC()
    oracle.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    oracle.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    oracle.train_from_iterator(SENTENCES, trainer)
    oracle.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIALS])
    oracle.add_tokens([AddedToken(name, normalized=False) for name in MARKUP])
    folder = tmp_path_factory.mktemp("small")
    oracle.save(str(folder / "tokenizer.json"))
    oracle.model.save(str(folder))
    added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(token.pop("id")): token for token in added},
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": {"content": "<|endoftext|>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def small(small_folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(small_folder)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def oracle(small_folder: Path) -> Oracle:
    """Hugging Face's reading of `small_folder`."""
    return Oracle.from_file(str(small_folder / "tokenizer.json"))


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """data("chats.jsonl", item, item) -> such a file; a .json is a list, bytes are written raw."""

    def write(name: str, *items: Any) -> Path:
        file = tmp_path / name
        if items and all(isinstance(item, bytes) for item in items):
            file.write_bytes(b"".join(items))
        elif file.suffix == ".json":
            file.write_text(json.dumps(list(items), indent=1), "utf-8")
        else:
            file.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
        return file

    return write
