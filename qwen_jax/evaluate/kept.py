"""What an evaluation keeps in its folder, so that it goes on when it is killed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from qwen_jax import distributed
from qwen_jax.evaluate.report import FOLDERS, SETTINGS, expect_free, sample_lines
from qwen_jax.files import atomic, strict_json


def claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, or find the same evaluation in it."""
    expect_free(output)
    for folder in FOLDERS:
        (output / folder).mkdir(parents=True, exist_ok=True)
    if not (told := output / SETTINGS).exists():
        atomic.write_text(told, json.dumps(settings, indent=1))
    elif (found := strict_json.read(told)) != settings:
        different = [name for name in settings if found.get(name) != settings[name]]
        raise ValueError(
            f"{output} holds another evaluation, with another {', '.join(different)}; "
            "choose another --output, or delete it"
        )


class Samples:
    """A task's answered questions by number; on process 0's disk as soon as they are known.

    count: how many the task has. Of those that were known before, the other processes are told only
    what is right.
    """

    def __init__(self, output: Path, task: str, count: int):
        self._done = output / "samples" / f"{task}.jsonl"
        self._open = output / "progress" / f"{task}.jsonl"
        self._file = None
        self._count = count
        self.known: dict[int, dict[str, Any]] = {}
        told = distributed.told_by_first(self._read)
        if jax.process_index() > 0:
            self.known = {index: {"correct": correct} for index, correct in told}
        elif not self._done.exists():
            self._file = self._open.open("a", encoding="utf-8")

    def _read(self) -> list[tuple[int, float]]:
        """What the disk holds; what is right comes back."""
        try:
            if self._done.exists():
                whole = _lines(self._done.read_bytes())
                self.known = dict(zip(range(self._count), whole, strict=True))
            elif self._open.exists():
                torn = self._open.read_bytes()
                kept = torn[: torn.rfind(b"\n") + 1]  # a last line may be torn
                self._open.write_bytes(kept)
                self.known = dict(_lines(kept))
            return [(index, float(sample["correct"])) for index, sample in self.known.items()]
        except (ValueError, TypeError, KeyError):
            file = self._done if self._done.exists() else self._open
            raise ValueError(
                f"{file} is damaged; delete it, and its questions are answered again"
            ) from None

    def add(self, index: int, sample: dict[str, Any]) -> None:
        self.known[index] = sample
        if self._file is not None:
            self._file.write(json.dumps([index, sample], ensure_ascii=False) + "\n")
            self._file.flush()

    def finish(self) -> None:
        if self._file is not None:
            ordered = (self.known[index] for index in range(self._count))
            atomic.write_text(self._done, sample_lines(ordered))
            self._open.unlink()

    def __enter__(self) -> "Samples":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _lines(content: bytes) -> list[Any]:
    return list(map(json.loads, content.decode().split("\n")[:-1]))
