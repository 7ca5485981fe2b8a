"""Batches: the samples and nothing else, in an order that no stop and no process changes."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_jax.data.examples import IGNORED
from qwen_jax.text.tokenizer import Tokenizer
from train.batches import Batches, BatchIterator, HostBatch
from train.samples import Samples


class Drawn(Samples):
    """Samples without files: ids that tell their sample, every third label learnt."""

    def __init__(self, sizes: list[int] | np.ndarray, length: int = 16, digest: str = "d") -> None:
        self.lengths, self.length, self.digest = np.array(sizes, np.int32), length, digest

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        ids = number * 100 + np.arange(self.lengths[number], dtype=np.int32)
        return ids, np.where(ids % 3 == 0, ids, IGNORED)

    def name(self, number: int) -> str:
        return f"s{number}"


sizes = st.lists(st.integers(2, 16), min_size=1, max_size=30)
DRAWN = Drawn(np.random.default_rng(0).integers(2, 17, 60))


def read_back(batch: HostBatch) -> list[tuple[list[Any], list[Any]]]:
    """(ids, targets) of every sample in a batch, row by row."""
    found = []
    for tokens, targets, positions, segments in zip(
        *(x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.targets)),
        *(x.reshape(-1, x.shape[-1]) for x in (batch.positions, batch.segments)),
        strict=True,
    ):
        last = segments.max(initial=0)
        assert segments.tolist() == sorted(segments[segments > 0]) + [0] * (segments == 0).sum()
        assert set(segments) - {0} == set(range(1, last + 1))
        assert not (segments == 0)[targets != IGNORED].any()
        for segment in range(1, last + 1):
            here = segments == segment
            assert positions[here].tolist() == [*range(here.sum())]
            found.append((tokens[here].tolist(), targets[here].tolist()))
    return found


def same(a: HostBatch, b: HostBatch) -> bool:
    return a.names == b.names and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("tokens", "targets", "positions", "segments")
    )


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, batch=st.integers(1, 3), passes=st.integers(1, 3), pack=st.booleans())
def test_an_epoch_is_every_sample_as_it_would_be_alone(
    sizes: list[int], batch: int, passes: int, pack: bool
) -> None:
    drawn = Drawn(sizes)
    batches = Batches(drawn, batch=batch, accumulation=passes, epochs=1, pack=pack)
    made = [batches[step] for step in range(len(batches))]
    assert {b.tokens.shape for b in made} == {(passes, batch, 16)}
    assert {x.dtype for b in made for x in (b.tokens, b.targets, b.positions, b.segments)} == {
        np.dtype(np.int32)
    }
    found = [sample for one in made for sample in read_back(one)]
    names = [name for one in made for name in one.names]
    for (ids, targets), name in zip(found, names, strict=True):
        wanted, labels = drawn[int(name[1:])]
        assert ids == wanted.tolist()
        assert targets == [*labels[1:].tolist(), IGNORED]
    assert sorted(names) == sorted(f"s{number}" for number in range(len(sizes)))


def test_epochs_follow_one_another_and_only_the_last_step_has_empty_rows() -> None:
    batches = Batches(DRAWN, batch=3, accumulation=2, epochs=3)
    empty = [(batches[step].segments.max(-1) == 0).sum() for step in range(batches.steps)]
    assert not any(empty[:-1])
    assert empty[-1] < 6
    names = [name for step in range(batches.steps) for name in batches[step].names]
    epochs = [names[:60], names[60:120], names[120:]]
    assert all(len(set(epoch)) == len(epoch) == 60 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("pack", [True, False])
def test_the_length_of_a_run(pack: bool) -> None:
    def rows(epochs: float) -> list[Any]:
        batches = Batches(DRAWN, batch=1, epochs=epochs, pack=pack)
        return [batches[step].names for step in range(batches.steps)]

    whole = rows(2)
    part = rows(0.5)
    assert part == whole[: len(part)]
    assert len(part) == -(-len(rows(1)) // 2)
    assert rows(0.01) == whole[:1]
    assert rows(1.5)[: len(rows(1))] == rows(1)
    assert len(rows(1)) < len(rows(1.5)) < len(whole)
    by_steps = Batches(DRAWN, batch=1, steps=len(whole), pack=pack)
    assert [by_steps[step].names for step in range(by_steps.steps)] == whole
    assert Batches(DRAWN, batch=7, accumulation=3, steps=100).steps == 100


def test_grouping_rows_changes_nothing() -> None:
    """Of the rows of a step: their division in passes, and which process makes them."""
    whole = Batches(DRAWN, batch=8, epochs=2)
    passes = Batches(DRAWN, batch=2, accumulation=4, epochs=2)
    parts = [Batches(DRAWN, batch=8, epochs=2, rows=rows) for rows in ([6, 1], [0, 2, 3, 4, 5, 7])]
    assert whole.digest == passes.digest == parts[0].digest
    for step in range(whole.steps):
        one, other = whole[step], passes[step]
        assert one.names == other.names
        assert np.array_equal(one.tokens[0], other.tokens.reshape(8, -1))
        for name in ("tokens", "targets", "positions", "segments"):
            joined = np.concatenate([getattr(part[step], name) for part in parts], 1)
            order = [*parts[0].rows, *parts[1].rows]
            assert np.array_equal(joined, getattr(one, name)[:, order])
        assert sorted(one.names) == sorted(name for part in parts for name in part[step].names)


def test_seeds() -> None:
    first, again, other = (Batches(DRAWN, batch=4, epochs=1, seed=seed) for seed in (1, 1, 2))
    assert same(first[0], again[0])
    assert not same(first[0], other[0])
    ordered = Batches(DRAWN, batch=4, epochs=2, seed=None, pack=False)
    names = [name for step in range(ordered.steps) for name in ordered[step].names]
    assert names == [f"s{number}" for number in range(60)] * 2


@pytest.mark.parametrize("step", [0, 1, 7, 12])
def test_a_run_goes_on_where_its_state_was_taken(step: int) -> None:
    def run(state: str | None = None) -> tuple[Batches, BatchIterator]:
        batches = Batches(DRAWN, batch=4, epochs=2)
        reader = iter(batches)
        if state is not None:
            reader.set_state(json.loads(state))
        return batches, reader

    batches, reader = run()
    for number in range(step):
        assert same(next(reader), batches[number])
    state = json.dumps(reader.get_state())
    assert len(state) < 60
    _, resumed = run(state)
    assert resumed.get_state() == reader.get_state()
    rest = list(resumed)
    assert len(rest) == batches.steps - step
    assert all(same(one, batches[step + n]) for n, one in enumerate(rest))
    assert resumed.get_state()["step"] == batches.steps


def test_a_state_of_another_run_is_refused() -> None:
    state = iter(Batches(DRAWN, batch=4, epochs=2)).get_state()
    others = [
        Batches(DRAWN, batch=5, epochs=2),
        Batches(DRAWN, batch=4, epochs=2, seed=1),
        Batches(DRAWN, batch=4, epochs=2, pack=False),
        Batches(Drawn(DRAWN.lengths, digest="e"), batch=4, epochs=2),
    ]
    for other in others:
        with pytest.raises(ValueError, match="the saved run had other data"):
            iter(other).set_state(state)
    longer = iter(Batches(DRAWN, batch=2, accumulation=2, epochs=9))
    longer.set_state(state)
    with pytest.raises(ValueError, match="got step 7 of a saved run, this one has 1"):
        iter(Batches(DRAWN, batch=4, steps=1)).set_state(state | {"step": 7})
    for damaged in ({}, {"step": 1}, state | {"step": "1"}, state | {"step": True}):
        with pytest.raises(ValueError, match="wanted the place in the data of a saved run"):
            longer.set_state(damaged)


def test_batches_are_made_ahead_in_threads() -> None:
    made, ahead = set(), threading.Event()

    class Watched(Drawn):
        def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
            if threading.current_thread() is not threading.main_thread():
                made.add(number)
            if len(made) > 4:  # the samples of one batch
                ahead.set()
            return super().__getitem__(number)

    reader = iter(Batches(Watched([4] * 400), batch=1, epochs=1))
    next(reader)
    assert ahead.wait(60)


def test_of_real_data(tmp_path: Path, small: Tokenizer) -> None:
    turns = [{"from": "user", "value": "the"}, {"from": "assistant", "value": "dog"}]
    file = tmp_path / "chats.json"
    file.write_text(json.dumps([{"conversations": turns * n} for n in range(1, 9)]))
    samples = Samples(file, small, length=200, loss_on="assistant")
    (batch,) = Batches(samples, batch=8, epochs=1, seed=None)
    learnt = batch.targets[batch.targets != IGNORED]
    answer = [*small.encode("dog"), small.specials["<|im_end|>"], *small.encode("\n")]
    assert learnt.tolist() == answer * 36
    assert sorted(batch.names) == [f"{file}[{n}]" for n in range(8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got epochs None and steps None, wanted one of the two"),
        ({"epochs": 1, "steps": 1}, "got epochs 1 and steps 1"),
        ({"epochs": 0}, "got epochs 0, wanted more than 0"),
        ({"epochs": float("nan")}, "got epochs nan"),
        ({"steps": 0}, "got steps 0, wanted 1 or more"),
        ({"epochs": 1, "batch": 0}, "got batch 0"),
        ({"epochs": 1, "accumulation": 0}, "got accumulation 0"),
        ({"epochs": 1, "seed": -1}, "got seed -1, wanted 0 or more"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(DRAWN, **({"batch": 4} | options))


def test_steps_are_those_of_the_run() -> None:
    batches = Batches(DRAWN, batch=4, epochs=1)
    for step in (-1, batches.steps):
        with pytest.raises(IndexError):
            batches[step]
