"""What a run may be told: all that is wrong at once, and what must not change in between."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import tyro

from tests.train.runs import ROOT, arguments
from train import run
from train.settings import FREE, LOWEST, TrainConfig, default

DATA = "README.md"  # a file that is there
GOOD = TrainConfig(model="demo", data=(DATA,), out="out")


def problems(devices: int = 8, **changes: Any) -> list[str]:
    try:
        dataclasses.replace(GOOD, **changes).check(devices)
    except ValueError as error:
        heading, *found = str(error).split("\n  ")
        assert heading == "these settings cannot be used:"
        return found
    return []


def test_the_defaults_can_be_used() -> None:
    assert problems(1) == problems(8) == problems(16) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch_size": 0}, "batch_size is 0; the least is 1"),
        ({"max_length": 1}, "max_length is 1; the least is 2"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; give a number"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be below 1"),
        ({"warmup": 1.5}, "warmup is 1.5; it is a part of the steps, from 0 to 1"),
        ({"data": ()}, "data names no file"),
        ({"method": "full", "rank": 8}, "rank has no meaning with --method full; leave it out"),
        ({"bits": 8}, "bits has no meaning with --method lora; leave it out"),
        (
            {"adapter": "tests/golden/peft/lora", "alpha": 8},
            "alpha has no meaning with --adapter, which has its own; leave it out",
        ),
        (
            {"adapter": "nowhere"},
            "--adapter: no folder nowhere; give the folder of an adapter in PEFT's format",
        ),
        ({"steps": 9, "epochs": 2}, "both steps (9) and epochs (2) are given; leave one out"),
        (
            {"report": ("none", "tensorboard")},
            "report is none and tensorboard; give none alone, or leave it out",
        ),
        ({"eval_every": 5}, "eval_every needs eval_data, the files to measure"),
        ({"keep_best": True}, "keep_best needs eval_data, the files to measure"),
        (
            {"keep_best": True, "eval_data": (DATA,), "eval_every": 300},
            "keep_best needs a measurement at each checkpoint: save_every 1000 is no multiple "
            "of eval_every 300",
        ),
        (
            {"mesh_data": 3},
            "mesh_data 3 x mesh_fsdp 2 x mesh_tensor 1 makes 6 devices, there are 8; "
            "choose sizes whose product is 8",
        ),
        (
            {"mesh_tensor": 2, "mesh_fsdp": 3},
            "mesh_data 1 x mesh_fsdp 3 x mesh_tensor 2 makes 6 devices, there are 8; "
            "choose sizes whose product is 8",
        ),
        (
            {"batch_size": 20, "mesh_data": 2},
            "batch_size 20 does not divide among mesh_data 2 x mesh_fsdp 4; "
            "use 16 or 24, or more mesh_tensor",
        ),
        (
            {"batch_size": 4},
            "batch_size 4 does not divide among mesh_data 1 x mesh_fsdp 8; "
            "use 8, or more mesh_tensor",
        ),
        (
            {"batch_size": 96, "micro_batch": 5},
            "micro_batch 5 does not divide a device's 12 rows of a batch; "
            "use one of 1, 2, 3, 4, 6, 12",
        ),
    ],
)
def test_refused(changes: dict[str, Any], problem: str) -> None:
    assert problems(**changes) == [problem]


@pytest.mark.parametrize("name", LOWEST)
def test_numbers_have_a_least(name: str) -> None:
    below: dict[str, Any] = {"eval_data": ("a",)} | {name: type(LOWEST[name])(LOWEST[name] - 1)}
    assert f"{name} is {LOWEST[name] - 1}; the least is {LOWEST[name]}" in problems(**below)


def test_all_at_once() -> None:
    found = problems(batch_size=0, steps=0, keep_best=True, adapter="nowhere", method="full")
    assert len(found) == 5  # an adapter has no meaning with "full" either


def test_where_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert problems(out=str(tmp_path / "new" / "out")) == []
    wanted = f"out: {tmp_path / 'file'} is a file; choose another folder"
    assert problems(out=str(tmp_path / "file" / "out")) == [wanted]
    assert problems(out="/proc/1/out")[0].startswith("out: /proc/1 cannot be written to")


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, (1, 16)),  # 2 rows on each of 8 devices
        ({"micro_batch": 1}, (2, 8)),
        ({"batch_size": 64}, (4, 16)),
        ({"batch_size": 8}, (1, 8)),  # fewer rows a device than micro_batch
        ({"mesh_tensor": 8}, (8, 2)),  # the original's 2 x 8
        ({"mesh_data": 2, "mesh_tensor": 2}, (2, 8)),
    ],
)
def test_rows_of_an_update(changes: dict[str, Any], rows: tuple[int, int]) -> None:
    settings = dataclasses.replace(GOOD, **changes)
    assert settings.division(8) == rows
    assert math.prod(settings.mesh_sizes(8)) == 8


def test_the_originals_numbers() -> None:
    recipe = run.recipe(GOOD, 100)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.beta2) == (3e-4, 0.1, 0.95)
    assert (recipe.warmup, recipe.schedule, recipe.clip, recipe.seed) == (0.01, "cosine", 1.0, 42)
    assert run.recipe(dataclasses.replace(GOOD, method="full"), 1).learning_rate == 1e-5
    assert run.recipe(dataclasses.replace(GOOD, learning_rate=2.0), 7).learning_rate == 2.0
    assert (GOOD.rank, GOOD.alpha, GOOD.dropout, GOOD.epochs) == (64, 16, 0.05, 5)


def test_every_number_reaches_the_recipe() -> None:
    changed: dict[str, Any] = {"schedule": "constant", "warmup": 0.5, "beta2": 0.9}
    changed |= {"weight_decay": 0.3, "clip": 3.0, "remat": "none", "seed": 7, "learning_rate": 0.1}
    recipe = run.recipe(dataclasses.replace(GOOD, **changed), 9)
    assert {name: getattr(recipe, name) for name in changed} == changed
    assert recipe.steps == 9


def test_what_may_change_in_between() -> None:
    before = json.loads(json.dumps(GOOD.to_json()))
    assert GOOD.differences(before) == []
    free: dict[str, Any] = {"micro_batch": 1, "mesh_tensor": 2, "save_every": 5, "out": "elsewhere"}
    assert dataclasses.replace(GOOD, **free).differences(before) == []
    other = dataclasses.replace(GOOD, rank=8, data=("other.json",), seed=1)
    assert other.differences(before) == [
        f"data was ['{DATA}'], now it is ['other.json']",
        "rank was 64, now it is 8",
        "seed was 42, now it is 1",
    ]
    assert set(FREE) < {field.name for field in dataclasses.fields(TrainConfig)}


def test_every_field_is_read() -> None:
    code = "".join(file.read_text("utf-8") for file in (ROOT / "train").glob("*.py"))
    for field in dataclasses.fields(TrainConfig):
        assert re.search(rf"(self|settings)\.{field.name}\b", code), field.name


def test_the_command_line_says_the_same() -> None:
    settings = dataclasses.replace(
        GOOD, method="qlora", data=("a", "b"), targets=("c_attn",), steps=5, pack=True, bits=8
    )
    assert tyro.cli(TrainConfig, args=arguments(settings)) == settings
    assert tyro.cli(TrainConfig, args=[*arguments(GOOD), "--no-pack"]).pack is False
    assert default("rank") == 64


def test_every_option_is_explained() -> None:
    guide = (ROOT / "docs" / "training.md").read_text("utf-8")
    explained = re.findall(r"^        (\w+): ", str(TrainConfig.__doc__), re.MULTILINE)
    assert sorted(explained) == sorted(field.name for field in dataclasses.fields(TrainConfig))
    for name in explained:
        assert f"`--{name.replace('_', '-')}`" in guide, name
