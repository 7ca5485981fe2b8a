"""How many bytes, in words: one way everywhere."""

from pathlib import Path


def size(count: float) -> str:
    """Three digits and the unit that fits: 512 B, 24.6 kB, 988 MB, 15.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def on_disk(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
