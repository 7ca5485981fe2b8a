"""Small checkpoints to convert and to break."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches NumPy, and so safetensors, bfloat16
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import Golden

Copy = Callable[..., Path]  # the fixtures
Edit = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "big: takes minutes and 20 GB of disk; run with -m big")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "big" in item.keywords and "big" not in item.config.getoption("-m"):
        pytest.skip("run it with -m big")


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Copy:
    """checkpoint("v1/base", key=value) -> a copy to break; the values change its config.json."""

    def copy(name: str, **changes: Any) -> Path:
        folder = shutil.copytree(golden(name), tmp_path / name.replace("/", "-"))
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return copy


@pytest.fixture
def edit() -> Edit:
    """edit(file, name=array or None): change, add or drop tensors of a safetensors file."""

    def change(file: Path, **tensors: Any) -> None:
        new = load_file(file) | tensors
        save_file({k: v for k, v in new.items() if v is not None}, file, metadata={"format": "pt"})

    return change
