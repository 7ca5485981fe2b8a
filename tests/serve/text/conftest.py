"""Grammars of the small vocabulary."""

from collections.abc import Iterator

import pytest

from qwen_jax.text.tokenizer import Tokenizer
from serve.text.grammar import Grammars


@pytest.fixture(scope="module")
def grammars(small: Tokenizer) -> Iterator[Grammars]:
    made = Grammars(small, 416, [small.specials["<|im_end|>"]])
    yield made
    made.close()
