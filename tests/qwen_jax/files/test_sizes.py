"""Bytes in words."""

from pathlib import Path

import pytest

from qwen_jax.files.sizes import on_disk, size


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (24_576, "24.6 kB"),
        (999_600, "1 MB"),
        (988_097_824, "988 MB"),
        (15_442_649_088, "15.4 GB"),
        (2.3e12, "2.3 TB"),
    ],
)
def test_size(count: float, words: str) -> None:
    assert size(count) == words


def test_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(5))
    (tmp_path / "d").write_bytes(bytes(7))
    assert on_disk(tmp_path) == 12
