"""Where things lie in a native folder; see native."""

from pathlib import Path

MANIFEST, WEIGHTS = "manifest.json", "weights"  # the first is what makes a folder native


def piece_file(folder: Path, piece: str) -> Path:
    return folder / WEIGHTS / f"{piece}.safetensors"
