"""Which Hugging Face checkpoint a native folder was made from: what its adapters name as base."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from qwen_jax.files.strict_json import TEXT, StrictObject, read


@dataclass(frozen=True)
class Origin:
    """base: a hub id, or a folder of this machine. revision: of the hub."""

    FILE: ClassVar = "origin.json"
    base: str
    revision: str | None = None

    @staticmethod
    def of(asked: str, folder: Path, source: str, revision: str | None) -> "Origin":
        """From what was asked for and the folder where it is; other hubs have ids of their own."""
        if source == "huggingface" and asked != "demo" and not Path(asked).is_dir():
            return Origin(asked, revision)
        return Origin(str(folder.resolve()))

    def write(self, folder: Path) -> None:
        (folder / Origin.FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @staticmethod
    def read(folder: Path) -> "Origin | None":
        """None for a network that came from elsewhere, or that was trained since."""
        if not (folder / Origin.FILE).is_file():
            return None
        reader = StrictObject(str(folder / Origin.FILE), read(folder / Origin.FILE))
        made = Origin(reader.take(TEXT, "base"), reader.take(TEXT, "revision", default=None))
        reader.finish([])
        return made
