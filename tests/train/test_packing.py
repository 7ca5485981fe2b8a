"""Plans of rows: whole samples, each once, nearly full rows, and another order every epoch."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.packing import Plan, plan

lengths = st.lists(st.integers(1, 30), max_size=80).map(lambda x: np.array(x, np.int32))


def rows_of(plan: Plan) -> list[Any]:
    return [plan[row] for row in range(len(plan))]


def typical(count: int, length: int = 2048) -> np.ndarray:
    drawn = np.random.default_rng(0).lognormal(np.log(300), 0.9, count)
    return np.clip(drawn.astype(np.int32), 8, length)


@given(lengths=lengths, pack=st.booleans(), seed=st.none() | st.integers(0, 9))
def test_every_sample_is_in_one_row_and_rows_are_not_too_long(
    lengths: np.ndarray, pack: bool, seed: int | None
) -> None:
    rows = rows_of(plan(lengths, 30, pack=pack, seed=seed))
    assert sorted(sample for row in rows for sample in row) == [*range(len(lengths))]
    assert all(rows)
    assert all(lengths[row].sum() <= 30 for row in rows)
    if not pack:
        assert all(len(row) == 1 for row in rows)


@given(lengths=lengths)
def test_no_two_rows_would_fit_in_one(lengths: np.ndarray) -> None:
    sums = sorted(lengths[row].sum() for row in rows_of(plan(lengths, 30, pack=True, seed=1)))
    assert len(sums) < 2 or sums[0] + sums[1] > 30


@pytest.mark.parametrize("pack", [True, False])
def test_the_order_is_that_of_seed_and_epoch(pack: bool) -> None:
    def order(seed: int | None, epoch: int = 0) -> list[list[int]]:
        return rows_of(plan(typical(200), 2048, pack=pack, seed=seed, epoch=epoch))

    assert order(1) == order(1)
    distinct = [order(1), order(1, 1), order(2), order(2, 1), order(None)]
    assert all(a != b for n, a in enumerate(distinct) for b in distinct[:n])
    assert order(None) == order(None, 1)


def test_companions_and_places_of_a_sample_change() -> None:
    epochs = [rows_of(plan(typical(500), 2048, pack=True, seed=0, epoch=e)) for e in range(2)]
    pairs = [{frozenset((a, b)) for row in rows for a in row for b in row if a != b}
             for rows in epochs]  # fmt: skip
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])


def test_without_a_seed_samples_come_in_their_order() -> None:
    assert rows_of(plan(np.array([4, 3, 2, 5]), 6, pack=False)) == [[0], [1], [2], [3]]
    assert rows_of(plan(np.array([4, 3, 2, 5]), 6, pack=True)) == [[0, 2], [1], [3]]


def test_the_fullest_row_with_room_is_taken() -> None:
    assert rows_of(plan(np.array([20, 20, 5, 10]), 30, pack=True)) == [[0, 3], [1, 2]]
    assert rows_of(plan(np.array([3, 6, 4, 1, 1]), 7, pack=True)) == [[0, 2], [1, 3], [4]]


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_rows_are_nearly_full(length: int) -> None:
    samples = typical(20_000, length)
    assert samples.sum() / (len(plan(samples, length, pack=True, seed=0)) * length) > 0.97


def test_late_rows_do_not_gather_at_the_end() -> None:
    samples = typical(20_000)
    rows = rows_of(plan(samples, 2048, pack=True, seed=0))
    emptiest = np.argsort([samples[row].sum() for row in rows])[:50]
    assert 0.3 < emptiest.mean() / len(rows) < 0.7


def test_a_million_samples_take_seconds() -> None:
    samples = typical(1_000_000)
    start = time.process_time()
    plan(samples, 2048, pack=True, seed=0)
    assert time.process_time() - start < 5


def test_an_empty_epoch_and_a_sample_that_fits_nowhere() -> None:
    assert len(plan(np.array([], np.int32), 8, pack=True, seed=0)) == 0
    with pytest.raises(ValueError, match="got a sample of 9 tokens for rows of 8"):
        plan(np.array([3, 9]), 8, pack=True)
