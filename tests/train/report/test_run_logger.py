"""What a run tells while it goes and leaves behind."""

import io
import json
import math
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from qwen_jax.config import Config
from tests.qwen_jax.networks import V1
from train.report import plot, run_logger, speed
from train.report.run_logger import RunLogger

METRICS = {
    "loss": 2.0, "targets": 90, "tokens": 100, "gradient_norm": 1.5, "learning_rate": 1e-3,
    "skipped": 0,
}  # fmt: skip
CONFIG = Config.from_hf(V1)


def made(
    folder: Path,
    steps: int = 10,
    done: int = 0,
    work: float = 1e9,
    log_every: int = 1,
    tell: Any = lambda step, values: None,
) -> Any:
    return closing(RunLogger(folder, steps, done, work, log_every, tell))


def records(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "log.jsonl").read_text("utf-8")
    strict = lambda name: pytest.fail(f"{name} is no JSON")
    return [json.loads(line, parse_constant=strict) for line in text.splitlines()]


def test_an_object_a_step(tmp_path: Path) -> None:
    others: dict[int, Any] = {}
    with made(tmp_path, tell=others.__setitem__) as told:
        told.step(1, METRICS)
        told.step(2, METRICS | {"loss": 1.5}, held_out=math.log(8))
        told.step(3, METRICS | {"loss": math.nan, "gradient_norm": math.inf, "skipped": 1})
        told.step(4, METRICS, held_out=1e6)
    first, second, third, fourth = records(tmp_path)
    assert {name: first[name] for name in METRICS} == METRICS
    assert (first["step"], first["seconds"], first["tokens_per_second"]) == (1, None, None)
    assert first["memory"] > 1e7
    assert second["tokens_per_second"] == 100 / second["seconds"]
    assert second["held_out_loss"] == math.log(8)
    assert second["held_out_perplexity"] == pytest.approx(8)
    assert (third["loss"], third["gradient_norm"], third["skipped"]) == (None, None, 1)
    assert fourth["held_out_perplexity"] is None  # beyond any number
    assert told.summary() == (
        "10 steps, loss 2.0000 at the first, 2.0000 at the last, "
        "held-out loss 1000000.0000 (perplexity inf), 1 without a finite gradient"
    )
    kept = lambda record: {k: v for k, v in record.items() if k != "step" and v is not None}
    assert others == {record["step"]: kept(record) for record in records(tmp_path)}


def test_going_on_replaces_what_is_made_again(tmp_path: Path) -> None:
    with made(tmp_path) as told:
        for step in (1, 2, 3):
            told.step(step, METRICS | {"loss": float(step)})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    with made(tmp_path, done=2) as told:
        assert told.smoothed == pytest.approx((0.9 * 1 + 2) / 1.9)
        told.step(3, METRICS | {"loss": 7.0})
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 7.0)]


def test_log_every_keeps_what_matters(tmp_path: Path) -> None:
    with made(tmp_path, log_every=4) as told:
        for step in range(1, 10):
            told.step(step, METRICS | {"skipped": int(step == 6)}, 1.0 if step == 7 else None)
    assert [record["step"] for record in records(tmp_path)] == [4, 6, 7, 8]


def test_speed_counts_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr(run_logger, "monotonic", lambda: next(clock))
    monkeypatch.setattr(speed, "peak", lambda kind: 1e12)
    monkeypatch.setattr(RunLogger, "_show", lambda self, record: None)
    with made(tmp_path, work=3e9) as told:
        told.step(1, METRICS)  # compiles
        told.step(2, METRICS)
        told.pause()  # saves
        told.step(3, METRICS)
        told.step(4, METRICS)
    found = records(tmp_path)
    assert [record["seconds"] for record in found] == [None, 10.0, None, 8.0]
    assert [record["tokens_per_second"] for record in found] == [None, 10.0, None, 12.5]
    assert found[1]["utilisation"] == pytest.approx(10 * 3e9 / 8e12)  # of 8 devices
    assert told.step_seconds == pytest.approx((0.9 * 10 + 8) / 1.9)


def test_lines_where_nothing_can_be_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with made(tmp_path, steps=3) as told:
        for step in (1, 2, 3):
            told.step(step, METRICS)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["step 1/3", "loss 2.0000"],
        ["step 3/3", "loss 2.0000"],
    ]


def test_one_line_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(speed, "peak", lambda kind: 1e30)
    monkeypatch.setattr(run_logger, "REFRESH", 0)
    with made(tmp_path, steps=3) as told:
        told.step(1, METRICS)
        told.step(2, METRICS, held_out=1.25)
    shown = screen.getvalue()
    assert shown.count("\n") == 1
    assert shown.endswith(" left\n")
    first, second = shown.rstrip("\n").split("\r\x1b[K")[1:]
    assert re.fullmatch(r"step 1/3  loss 2.0000  [0-9.]+ [MG]B.*", first)
    assert second.startswith("step 2/3  loss 2.0000  held out 1.2500  ")
    assert "tokens/s  0% of the peak  " in second


def test_only_one_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with made(tmp_path) as told:
        told.step(1, METRICS)
    run_logger.say("nothing")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_the_picture(tmp_path: Path) -> None:
    log = [{"step": n, "loss": 3 / n} for n in range(1, 30)] + [{"step": 30, "loss": None}]
    plot.draw(log, tmp_path / "loss.png")
    plain = imread(tmp_path / "loss.png")
    plot.draw([*log, {"step": 31, "loss": 1.0, "held_out_loss": 2.0}], tmp_path / "loss.png")
    assert plain.shape == (540, 960, 4)
    orange = lambda image: (np.abs(image[..., :3] - (1.0, 0.5, 0.05)).max(-1) < 0.1).sum()
    blue = lambda image: (np.abs(image[..., :3] - (0.12, 0.47, 0.71)).max(-1) < 0.1).sum()
    assert blue(plain) > 500
    assert orange(plain) == 0
    assert orange(imread(tmp_path / "loss.png")) > 20
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_work_of_a_token() -> None:
    """6 N in full, 4 N and little more with adapters, and attention."""
    weights = CONFIG.vocab * CONFIG.width + CONFIG.layers * (
        4 * CONFIG.width**2 + 3 * CONFIG.width * CONFIG.mlp
    )
    small = CONFIG.layers * (3 + 2) * CONFIG.width + CONFIG.width  # biases and norms
    full = speed.work(CONFIG, 10**9, 0)
    assert full == 6 * (weights + small)
    assert speed.work(CONFIG, 100, 0) == 4 * (weights + small) + 200
    attention = 12 * CONFIG.layers * CONFIG.heads * CONFIG.head_dim
    assert speed.work(CONFIG, 100, 7) - speed.work(CONFIG, 100, 0) == 7 * attention


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks(kind: str, wanted: float | None) -> None:
    assert speed.peak(kind) == wanted
