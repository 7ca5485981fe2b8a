"""One file for any vocabulary: what comes back is what went in, and damage is told."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.vocabulary import Vocabulary, read
from qwen_jax.text.vocabulary_file import pack, unpack
from tests.assets import read_vocabulary

ORDERED = ("ranks", "normalized", "start", "end")
UNORDERED = {"ranks": dict, "specials": dict, "names": dict, "markup": set, "chat_template": str}


@pytest.fixture
def small_vocabulary(small_folder: Path) -> Vocabulary:
    read = read_vocabulary(small_folder)
    template = "{{ 你好 }}\n{{ x }}"
    return replace(read, chat_template=template, normalized=["<think>"], start=[7], end=[3])


def same(one: Vocabulary, other: Vocabulary) -> bool:
    """In the order of their tokens too."""
    assert {f.name for f in fields(one)} == {*ORDERED, *UNORDERED}, "a field is not written"
    return all([*getattr(one, name)] == [*getattr(other, name)] for name in ORDERED) and all(
        kind(getattr(one, name) or ()) == kind(getattr(other, name) or ())
        for name, kind in UNORDERED.items()
    )


def test_a_vocabulary_comes_back(small_vocabulary: Vocabulary) -> None:
    packed = pack(small_vocabulary)
    assert same(unpack(packed), small_vocabulary)
    assert pack(unpack(packed)) == packed


def test_the_real_vocabulary_comes_back(real_vocabulary: Path, real: Tokenizer) -> None:
    vocabulary = read(real_vocabulary)
    assert vocabulary is not None
    made = unpack(pack(vocabulary))
    assert same(made, vocabulary)
    text = "def main():\n    print('你好, Ærøskøbing')  # <|im_end|> 3.14159"
    assert Tokenizer(made).encode(text, specials=True) == real.encode(text, specials=True)


def test_damage_is_told(small_vocabulary: Vocabulary) -> None:
    """Whatever bit is flipped and wherever the file ends, it is a ValueError or a vocabulary."""
    packed, random = pack(small_vocabulary), np.random.default_rng(0)
    refused = 0
    for number in range(600):
        content = bytearray(packed)
        at = int(random.integers(len(content)))
        content[at] ^= 1 << int(random.integers(8))
        try:
            Tokenizer(unpack(bytes(content[: at if number % 2 else None])))
        except ValueError:
            refused += 1
    assert refused > 300  # those that were cut off, at least


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ('"tokens": 400', '"tokens": 401'),
        ('"tokens": 400', '"tokens": true'),
        ('"markup": [', '"markup": [7, '),
        ('"names": {', '"names": {"x": 7, '),
        ('"specials": {', '"specials": {"x": -1, '),
        ('"chat_template": "', '"chat_templat": "'),
        ('"chat_template": "', '"chat_template": 7, "": "'),
    ],
)
def test_other_entries_are_refused(small_vocabulary: Vocabulary, entry: str, value: str) -> None:
    packed = pack(small_vocabulary)
    assert entry.encode() in packed
    with pytest.raises(ValueError, match=r"vocabulary\.bin (is|cannot be read)"):
        unpack(packed.replace(entry.encode(), value.encode()))
