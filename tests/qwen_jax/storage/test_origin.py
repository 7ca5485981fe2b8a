"""What a native folder was made from."""

from pathlib import Path

import pytest

from qwen_jax.storage.origin import Origin


@pytest.mark.parametrize("origin", [Origin("Qwen/Qwen-7B", "main"), Origin("/data/模型")])
def test_written_and_read(tmp_path: Path, origin: Origin) -> None:
    origin.write(tmp_path)
    assert Origin.read(tmp_path) == origin


def test_nowhere(tmp_path: Path) -> None:
    assert Origin.read(tmp_path) is None


@pytest.mark.parametrize("text", ["[]", "{", '{"base": 1}', '{"base": "a", "more": 1}', "{}"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / Origin.FILE).write_text(text)
    with pytest.raises(ValueError, match=Origin.FILE):
        Origin.read(tmp_path)
