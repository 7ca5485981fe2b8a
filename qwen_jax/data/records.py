"""The records of data files, by number: found before training, read one at a time."""

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qwen_jax.data.formats import Record, document, parse, recognise
from qwen_jax.data.index import SUFFIXES, Index, index
from qwen_jax.files.problems import Problems
from qwen_jax.files.strict_json import decode

Paths = str | Path | Sequence[str | Path]
NO_DATA = (".md", "")  # what lies beside data: README.md, LICENSE


def refuse(problems: Problems, undone: str) -> None:
    """Raise ValueError if data has any. undone: what they kept from being done, "trained"."""
    noun = "fault" if problems.count == 1 else "faults"
    problems.stop(f"{problems.count} {noun} in the data, nothing was {undone}")


class Records:
    """The records of files and folders in the order given, those of a folder in that of names.

    Only where each lies is kept in memory. `problems` holds those of whole files; a record's own
    come when it is read.
    """

    def __init__(self, paths: Paths):
        self.problems = Problems()
        self._files: list[Index] = []
        given = [paths] if isinstance(paths, str | Path) else paths
        for path in itertools.chain.from_iterable(map(self._within, map(Path, given))):
            try:
                self._files.append(index(path))
            except OSError as error:
                self.problems.add(f"{path}: {error.strerror}")
            except ValueError as error:
                self.problems.add(f"{path}: {error}")
        counts = (len(file.spans) for file in self._files)
        self._starts = list(itertools.accumulate(counts, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> Record:
        """Raises ValueError for a record with problems; a `Wrong` has a line for each."""
        file, index = self._find(number)
        start, stop, _ = file.spans[index].tolist()
        with file.path.open("rb") as stream:
            stream.seek(start)
            data = stream.read(stop - start)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {start + error.start} of the file is not UTF-8") from None
        if file.form == "text":
            return document(text)
        item = decode(text)
        return parse(item, file.format or recognise(item))

    @property
    def documents(self) -> np.ndarray:
        """Whether each record is a document and not a conversation, bool [records]."""
        counts = [len(file.spans) for file in self._files]
        return np.repeat(np.array([file.format == "text" for file in self._files], bool), counts)

    @property
    def digest(self) -> str:
        """Of where every record lies."""
        hash = hashlib.sha256()
        for file in self._files:
            hash.update(file.spans.tobytes())
        return hash.hexdigest()[:16]

    def name(self, number: int) -> str:
        """chats.jsonl:12, which is the line; chats.json[12], counted from 0; or novel.txt."""
        file, index = self._find(number)
        line = file.spans[index, 2]
        ends = {"text": "", "lines": f":{line}", "list": f"[{index}]"}
        return f"{file.path}{ends[file.form]}"

    def where(self, number: int) -> str:
        """`name`, and for an item of a list the line where it begins."""
        file, index = self._find(number)
        line = f" (line {file.spans[index, 2]})" if file.form == "list" else ""
        return self.name(number) + line

    def _find(self, number: int) -> tuple[Index, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"got record {number} of {len(self)}")
        file = bisect_right(self._starts, number) - 1
        return self._files[file], number - self._starts[file]

    def _within(self, path: Path) -> Iterator[Path]:
        """The data files that a path stands for; hidden ones are left out of folders."""
        if not path.is_dir():
            yield path
            return
        files = sorted(
            file
            for file in path.rglob("*")
            if file.is_file()
            and file.suffix not in NO_DATA
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not files:
            self.problems.add(f"{path}: no data in this folder, wanted {', '.join(SUFFIXES)}")
        yield from files
