"""All pieces as one result: shares of the device's limits, a table, and a chart."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.support.tables import table
from qwen_jax.files import atomic

Result = dict[str, Any]
_COLOURS = {"bfloat16": "#5b3fa0", "int8": "#3f7fa0", "int4": "#3fa07a"}


def merge(folder: Path, names: Iterable[str]) -> Result:
    """Every piece's cases, with shares of the limits where the ceilings are known."""
    pieces = {name: _cases(folder / f"{name}.json") for name in names}
    found = pieces["ceilings"]
    read = found.get("read", {}).get("gigabytes_a_second", 0) * 1e9
    product = found.get("product bfloat16", {}).get("teraflops_a_second", 0) * 1e12
    for cases in pieces.values():
        for case in cases.values():
            if read and product and (limit := _limit(case, read, product)):
                best = min(case["seconds"]) / case.get("steps", 1)
                case["limit_seconds"], case["share"] = round(limit, 6), round(limit / best, 3)
    return {"pieces": pieces}


def _cases(file: Path) -> dict[str, Result]:
    return json.loads(file.read_text("utf-8"))["cases"] if file.exists() else {}


def _limit(case: Result, read: float, product: float) -> float | None:
    """Seconds that no program can pass on this device, as it was measured."""
    if "bytes_a_step" in case:
        return max(case["bytes_a_step"] / read, case["flops_a_step"] / product)
    return case["flops"] / product if "flops" in case else None


def faults(result: Result, names: Iterable[str]) -> list[str]:
    """Cases of these pieces that failed, or gave what they must not."""
    return [
        f"{piece}: {name}: {case.get('failed', 'not what it should be')}"
        for piece in names
        for name, case in result["pieces"][piece].items()
        if "failed" in case or case.get("good") is False
    ]


def summary(result: Result) -> str:
    """One line for each case that was timed."""
    rows = [
        (
            f"{piece}, {name}",
            f"{case['tokens_a_second']:,.5g}",
            f"{case['share']:.0%}" if "share" in case else "",
            f"{case['peak_bytes'] / 1e9:.1f}" if case.get("peak_bytes") else "",
        )
        for piece, cases in result["pieces"].items()
        for name, case in cases.items()
        if "tokens_a_second" in case
    ]
    return table(("", "tokens/s", "of the limit", "peak, GB"), rows)


def draw(result: Result, file: Path) -> None:
    """Every timed case as a bar: its share of what the device could do; needs matplotlib."""
    from matplotlib.figure import Figure

    bars = [
        (f"{piece}, {name}", case["share"], case["tokens_a_second"])
        for piece, cases in result["pieces"].items()
        for name, case in cases.items()
        if "share" in case
    ]
    figure = Figure(figsize=(9, 1.5 + 0.22 * len(bars)), layout="constrained")
    axes = figure.subplots()
    colour = lambda name: next((c for kind, c in _COLOURS.items() if kind in name), "#808080")
    labels = [name for name, *_ in bars]
    axes.barh(labels, [share for _, share, _ in bars], color=[colour(name) for name in labels])
    for place, (_, share, rate) in enumerate(bars):
        axes.text(share, place, f" {rate:,.4g} tokens/s", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("share of the limit, by measured bandwidth and arithmetic")
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    device = result["pieces"]["ceilings"].get("device", {})
    axes.set_title(device.get("kind", ""))
    file.parent.mkdir(exist_ok=True)
    with atomic.new_file(file) as partial:
        figure.savefig(partial, dpi=130, format="png")
