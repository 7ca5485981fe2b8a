"""Which samples share a row: a function of their lengths, a seed and an epoch, and nothing else.

Every process makes the same plan, however many there are.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """The rows of an epoch: row n holds the samples of `order` from starts[n] to starts[n + 1]."""

    order: np.ndarray  # [samples]
    starts: np.ndarray  # [rows + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> list[int]:
        return self.order[self.starts[row] : self.starts[row + 1]].tolist()


def plan(
    lengths: np.ndarray, length: int, *, pack: bool, seed: int | None = None, epoch: int = 0
) -> Plan:
    """Rows of at most `length` tokens that hold each sample once and whole.

    pack: False gives every sample a row of its own.
    seed: shuffles samples and rows, differently in every epoch; None keeps their order.
    """
    if len(lengths) and lengths.max() > length:
        raise ValueError(f"got a sample of {lengths.max()} tokens for rows of {length}")
    order = _shuffled(len(lengths), seed, epoch, 0)
    if not pack:
        return Plan(order, np.arange(len(order) + 1))
    rows = best_fit(lengths[order], length)
    count = int(rows.max(initial=-1)) + 1
    # Rows that were opened late are emptier: shuffled as well, no step gets all of them.
    rows = np.argsort(_shuffled(count, seed, epoch, 1))[rows]
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    return Plan(order[np.argsort(rows, kind="stable")], starts)


def best_fit(lengths: np.ndarray, length: int) -> np.ndarray:
    """The row of each sample in turn: the fullest with room for it, else a new one."""
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # by the room that is left
    rooms = 0  # bit n is set where open_rows[n] holds any
    rows, count = [], 0
    for size in lengths.tolist():
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row, count = length, count, count + 1
        rows.append(row)
        open_rows[room - size].append(row)
        rooms |= 1 << (room - size)
    return np.array(rows, np.int64)


def _shuffled(count: int, seed: int | None, epoch: int, use: int) -> np.ndarray:
    if seed is None:
        return np.arange(count)
    # Raw bits: NumPy keeps those of a generator, but not its permutations, from version to version.
    bits = np.random.PCG64([seed, epoch, use]).random_raw(count)
    return np.argsort(bits, kind="stable")
