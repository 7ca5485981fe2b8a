"""The vocabularies of the tokenizer's tests, and data files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.qwen_jax.conftest import oracle, real, real_vocabulary, small, small_folder

__all__ = ["oracle", "real", "real_vocabulary", "small", "small_folder"]


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
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
