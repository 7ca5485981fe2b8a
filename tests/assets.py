"""What a checkpoint holds beside its arrays, where a test knows that it does."""

from pathlib import Path

from qwen_jax.assets import Assets
from qwen_jax.nn.model import Qwen
from qwen_jax.text import vocabulary
from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.vocabulary import Vocabulary


def assets_of(params: Qwen) -> Assets:
    assert isinstance(params.assets, Assets)
    return params.assets


def tokenizer_of(params: Qwen) -> Tokenizer:
    tokenizer = assets_of(params).tokenizer
    assert tokenizer is not None
    return tokenizer


def read_tokenizer(folder: Path, extra: Path | None = None) -> Tokenizer:
    tokenizer = Tokenizer.load(folder, extra)
    assert tokenizer is not None
    return tokenizer


def read_vocabulary(folder: Path) -> Vocabulary:
    found = vocabulary.read(folder)
    assert found is not None
    return found
