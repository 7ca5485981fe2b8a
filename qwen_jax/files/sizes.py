"""How many bytes, in words: one way everywhere."""

import re
from pathlib import Path


def size(count: float) -> str:
    """Three digits and the unit that fits: 512 B, 24.6 kB, 988 MB, 15.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def parse(size: int | str) -> int:
    """Bytes: a number of them, or a text such as "5GB", "500MB" or "2GiB". Raises ValueError."""
    words = re.fullmatch(r"\s*(\d{1,15})\s*(?:([KMGT])(i?)B?|B)?\s*", str(size), re.IGNORECASE)
    if isinstance(size, bool) or words is None or int(words[1]) == 0:
        raise ValueError(f"got the size {size!r}, expected bytes, or a size like 5GB or 500MB")
    power = 0 if words[2] is None else "KMGT".index(words[2].upper()) + 1
    return int(words[1]) * (1024 if words[3] else 1000) ** power


def on_disk(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
