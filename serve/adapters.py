"""Adapters that come to a running server and go: which are there, and who follows them."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_jax.adapters import peft, peft_config
from qwen_jax.adapters.bank import Bank
from serve.engine.request import Request

_BESIDE = 64 * 2**20  # bytes of an adapter that is read though it does not fit, to say why not


@dataclass(eq=False)
class Loaded:
    """What a model's answers follow beside its weights."""

    number: int = 0  # among the adapters in the network; 0 is none
    edition: int = 0  # numbers are used again, and what was computed with another is no use
    followers: set[Request] = field(default_factory=set)  # that are not answered
    retired: bool = False  # nobody new is to follow it
    gone: bool = False  # its number may be another's


class Adapters:
    """The room for adapters in a network that answers; who changes it holds `changing`."""

    def __init__(self, bank: Bank, replace: Callable[[int, Any], None]):
        """replace: puts an array in the place of one of the weights, while they are used."""
        self._bank, self._replace = bank, replace
        self.changing = asyncio.Lock()  # one change at a time
        self._editions = itertools.count(1)
        self._inside: list[Loaded] = []

    @property
    def most(self) -> int:
        return self._bank.adapters

    def load(self, folder: Path) -> Loaded:
        """An adapter from its folder. It takes long; raises OSError or ValueError, and then nothing
        has changed."""
        number = self._bank.put(peft.read(folder, self._bank.size + _BESIDE), self._replace)
        loaded = Loaded(number, next(self._editions))
        self._inside.append(loaded)
        return loaded

    def make_room(self) -> int:
        """Take those out that nobody follows any more; how many are on their way out still.

        Where requests are put in line: none may begin to follow one at the same time.
        """
        for one in [one for one in self._inside if one.retired and not one.followers]:
            one.gone = True
            self._inside.remove(one)
            self._bank.remove(one.number)
        return sum(one.retired for one in self._inside)


def within(folders: Sequence[Path], path: str) -> Path:
    """The folder that a client means, if it lies in one of these; relative names begin in each.

    Raises ValueError for any other, links that lead elsewhere included, and does not say whether
    there is one.
    """
    for parent in folders:
        root = parent.resolve()
        try:
            found = (root / path).resolve()
            files = [(found / name).resolve() for name in (peft_config.FILE, peft.WEIGHTS)]
            if found.is_dir() and all(one.is_relative_to(root) for one in (found, *files)):
                return found
        except (OSError, RuntimeError):  # a name that is too long, links in a circle
            continue
    named = ", ".join(map(str, folders))
    raise ValueError(f"there is no folder {path[:200]!r} in those this server loads from: {named}")
