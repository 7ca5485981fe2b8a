"""Grammars of the small vocabulary."""

import pytest

from serve.text.grammar import Grammars


@pytest.fixture(scope="module")
def grammars(small):
    made = Grammars(small, 416, [small.specials["<|im_end|>"]])
    yield made
    made.close()
