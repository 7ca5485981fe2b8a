from collections.abc import Iterator

import pytest

from qwen_jax.nn.cpu import registered


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What a processor can is looked up anew, in the test and after it."""
    looked_up = registered._flags, registered.processor
    for known in looked_up:
        known.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for known in looked_up:
        known.cache_clear()
