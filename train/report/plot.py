"""The picture of a run: its loss, step by step, and what was held out."""

from pathlib import Path
from typing import Any

import numpy as np

from qwen_jax.files import atomic
from qwen_jax.files.strict_json import decode

KEPT = 0.9  # of the mean, at each step


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of log.jsonl; a last line that was cut off is left out.

    Raises ValueError for a line that this program did not write.
    """
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_record(decode(line), found[-1]["step"] if found else 0))
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged: line {number} is {error}; delete the line to go on"
            ) from None
    return found


def _record(record: Any, before: int) -> dict[str, Any]:
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError("no record of a step")
    if record["step"] <= before:
        raise ValueError(f"of step {record['step']}, behind that of step {before}")
    for name in ("loss", "held_out_loss"):
        if not isinstance(record.get(name), float | int | None) or record.get(name) is True:
            raise ValueError(f"a record whose {name} is no number")
    return record


class Mean:
    """What losses come to lately: an exponential mean of those so far, each step counting less."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        self._sum = KEPT * self._sum + (1 - KEPT) * value
        self._weight = KEPT * self._weight + (1 - KEPT)
        return self._sum / self._weight


def draw(log: list[dict[str, Any]], path: Path) -> None:
    """Write the loss curve of a log as a PNG."""
    from matplotlib.figure import Figure  # a second, which a run that draws nothing may keep
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    points = [(r["step"], r["loss"]) for r in log if r.get("loss") is not None]
    if points:
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="each step")
        axes.plot(
            steps, list(map(Mean().add, losses)), color="tab:blue", linewidth=2, label="smoothed"
        )
    held = [(r["step"], r["held_out_loss"]) for r in log if r.get("held_out_loss") is not None]
    if held:
        axes.plot(*np.transpose(held), "o-", color="tab:orange", label="held out")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if points or held:
        axes.legend(loc="upper right")  # "best" is slow where steps are many, and says so
    with atomic.new_file(path) as partial:
        figure.savefig(partial, format="png")
