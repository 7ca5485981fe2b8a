"""Checkpoints: which stay, what comes back on another mesh, and what a fault leaves behind."""

import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.nn.sharding import make_mesh
from tests.qwen_jax.networks import structure
from train.checkpoints import SEAL, Checkpoints
from train.loss_scale import LossScale
from train.step import TrainState

ROOT = Path(__file__).parents[2]
MESH = make_mesh(data=2, fsdp=2, tensor=2)


def alone(function: Callable[..., None], *arguments: str | Path) -> str:
    """What it says in a process of its own: orbax leaves threads behind what fails."""
    code = (
        "from pathlib import PosixPath; "
        f"from {function.__module__} import {function.__name__} as run; run(*{arguments!r})"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


def state(step: int, mesh: Any = MESH, size: int = 8) -> TrainState:
    """Two leaves with the moments of an optimizer, over the devices."""
    values = jnp.arange(size * 16, dtype=jnp.float32).reshape(size, 16) / 7 + step
    put = lambda spec: jax.device_put(values, NamedSharding(mesh, spec))
    trained = {"embed": put(P("tensor", "fsdp")), "blocks.mlp.down.kernel": put(P(None, "fsdp"))}
    optimizer = optax.adamw(lambda n: 0.1).init(trained)
    scale = LossScale(jnp.float32(2.0**step), jnp.int32(step))
    return TrainState(trained, optimizer, jnp.int32(step), jnp.int32(2), scale)


def shapes(tree: TrainState) -> TrainState:
    whole = NamedSharding(MESH, P())
    place = lambda x: x.sharding if isinstance(x.sharding, NamedSharding) else whole
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree)


def opened(folder: Path, keep: int = 2, keep_best: bool = False) -> Any:
    return closing(Checkpoints(folder, keep, keep_best))


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


@pytest.mark.parametrize(("keep_best", "kept"), [(False, [4, 5]), (True, [2, 4, 5])])
def test_the_newest_stay_and_the_best(tmp_path: Path, keep_best: bool, kept: list[int]) -> None:
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 1.5}
    for part in ([1, 2, 3], [4, 5]):  # what was measured is known to the next call
        with opened(tmp_path, keep_best=keep_best) as checkpoints:
            for step in part:
                checkpoints.save(step, state(step), {"step": step}, losses[step])
    assert steps(tmp_path) == kept
    with opened(tmp_path, keep_best=keep_best) as checkpoints:
        assert checkpoints.latest() == 5
        if keep_best:
            assert checkpoints.best() == 2


def test_nothing_yet(tmp_path: Path) -> None:
    with opened(tmp_path / "new") as checkpoints:
        assert checkpoints.latest() is None


def test_back_on_another_mesh(tmp_path: Path) -> None:
    """Every bit, counters and moments too, each in the shards that were asked for."""
    saved = state(3)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(3, saved, {"step": 3, "data": "x"}, None)
    like = shapes(state(0, make_mesh(fsdp=8, tensor=1)))
    with opened(tmp_path) as checkpoints:
        found, place = checkpoints.restore(3, like)
    assert place == {"step": 3, "data": "x"}
    assert structure(found) == structure(saved)
    for got, wanted, asked in zip(*map(jax.tree.leaves, (found, saved, like)), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert (got.sharding, got.dtype) == (asked.sharding, wanted.dtype)


def read_what_cannot_be(folder: Path, fault: str) -> None:
    with opened(folder) as checkpoints:
        checkpoints.save(1, state(1), {}, None)
    like = shapes(state(0))
    if fault == "damaged":
        (folder / "1" / SEAL).unlink()  # orbax finds some faults without it
        for file in (folder / "1" / "state").rglob("d/*"):
            file.write_bytes(b"nonsense")
    else:
        like = shapes(state(0, size=16))
    with opened(folder) as checkpoints, pytest.raises(ValueError) as caught:
        checkpoints.restore(1, like)
    assert str(caught.value).startswith(f"{folder / '1'} cannot be read: ")
    assert str(caught.value).endswith("; delete it to go on from the one before")


@pytest.mark.parametrize("fault", ["damaged", "other"])
def test_what_cannot_be_read_is_named(tmp_path: Path, fault: str) -> None:
    alone(read_what_cannot_be, tmp_path, fault)


def test_no_flipped_bit_is_read(tmp_path: Path) -> None:
    """In no file of a checkpoint, the hashes and the measures included."""
    with opened(tmp_path, keep_best=True) as checkpoints:
        checkpoints.save(1, state(1), {"step": 1}, 2.0)
    files = [file for file in (tmp_path / "1").rglob("*") if file.is_file()]
    assert {"metrics", "metadata", SEAL} <= {file.name for file in files}
    chance = random.Random(0)
    for file in files:
        content = bytearray(file.read_bytes())
        at, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
        content[at] ^= bit
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"/1"), opened(tmp_path, keep_best=True) as damaged:
            damaged.restore(1, shapes(state(0)))
        content[at] ^= bit
        file.write_bytes(content)
    with opened(tmp_path, keep_best=True) as checkpoints:
        checkpoints.restore(1, shapes(state(0)))


def test_leftovers_of_a_killed_save_go_away(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {}, None)
    left = tmp_path / "7.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, state(2), {}, None)
    assert not left.exists()
    assert steps(tmp_path) == [1, 2]


def fill(folder: Path) -> None:
    size = 1024  # 390 kB a checkpoint
    whole = "the checkpoints before this one are whole; make room and run the same command again"
    wanted = rf"the disk of {folder} is full: [\d.]+ kB left, [\d.]+ kB needed; {whole}"
    checkpoints = Checkpoints(folder, 10, False)
    with pytest.raises(OSError, match=wanted):  # noqa: PT012  # a later save says it, or the end
        for step in range(1, 6):
            checkpoints.save(step, state(step, size=size), {"step": step}, None)
        checkpoints.close()
    kept = steps(folder)
    assert kept
    with opened(folder) as checkpoints:
        found, place = checkpoints.restore(kept[-1], shapes(state(0, size=size)))
    assert place == {"step": kept[-1]}
    np.testing.assert_array_equal(
        found.trained["embed"], state(kept[-1], size=size).trained["embed"]
    )


def test_full_disk(small_disk: Path) -> None:
    assert "Traceback" not in alone(fill, small_disk / "checkpoints")


SAVES = """
import shutil, sys
from contextlib import closing
from pathlib import Path
from qwen_jax.cli import run
from tests.train.test_checkpoints import state
from train.checkpoints import Checkpoints
folder = Path(sys.argv[1])
def save_where_a_file_lies():
    with closing(Checkpoints(folder, keep=2, keep_best=False)) as checkpoints:
        checkpoints.save(1, state(1), {}, None)
        checkpoints._orbax.wait_until_finished()
        shutil.rmtree(folder)
        folder.write_text("in the way")
        checkpoints.save(2, state(2), {}, None)
run(save_where_a_file_lies)
"""


def test_a_save_that_fails_ends_the_process(tmp_path: Path) -> None:
    """orbax leaves threads behind that wait for what will never come."""
    line = [sys.executable, "-c", SAVES, str(tmp_path / "run")]
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 1
    assert f"error: {tmp_path / 'run'} cannot be written: [Errno 20]" in ran.stderr
