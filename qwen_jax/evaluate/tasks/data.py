"""The folder with the tasks' data, each in the layout in which its authors publish it."""

import csv
import gzip
import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_jax.files import strict_json

LARGEST = 1 << 30  # bytes of a file, unpacked


class NoData(ValueError):
    """A task's files are not there; the message says which, and where to get them."""


@dataclass(frozen=True)
class Data:
    """root: a folder with a folder for each task."""

    root: Path

    def find(self, task: str, *files: str, source: str) -> Path:
        """The first of some files or folders under the task's folder. source: where to get it."""
        for file in files:
            if (found := self.root / task / file).exists():
                return found
        wanted = " or ".join(str(self.root / task / file) for file in files)
        raise NoData(f"there is no {wanted}; get it from {source}")


def packaged(package: str, file: str) -> Path | None:
    """A data file that an installed package brings; None where it is not installed."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for place in (Path(folder), Path(folder).parent):
            if (found := place / file).exists():
                return found
    return None


def need(extra: str, *packages: str) -> None:
    """Raise NoData where a package is not installed that the extra brings."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise NoData(
            f'{", ".join(missing)} is not installed; pip install "qwen_jax[{extra}]" brings it'
        )


def text(path: Path) -> str:
    """A text file, unpacked if it ends in .gz."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path} holds more than {LARGEST} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}") from None


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    for number, line in enumerate(text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = strict_json.decode(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {number}, is {json.dumps(found)[:40]}, not an object")
        yield found


def table(path: Path, columns: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file. columns: names of a file without a header line."""
    rows = list(csv.reader(io.StringIO(text(path), newline="")))
    if not columns and rows:
        columns = tuple(rows.pop(0))
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise ValueError(
                f"{path}, row {number}, has {len(row)} columns, expected {len(columns)}: "
                f"{', '.join(columns)}"
            )
    return [dict(zip(columns, row, strict=True)) for row in rows]


def field(path: Path, row: dict[str, Any], name: str) -> str:
    """A text of a row, whatever else is in it."""
    if not isinstance(value := row.get(name), str):
        raise ValueError(f"{path} has a row whose {name!r} is {value!r}, expected a text")
    return value
