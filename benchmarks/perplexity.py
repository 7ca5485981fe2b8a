"""What quantising costs the bundled model: perplexity and recited answers, and error by layer.

    python -m benchmarks.perplexity

Every checkpoint is made by `convert` with tools/demo_chats.jsonl as calibration, loaded as users
load it, and judged by the answers of the conversations that did not calibrate. Other numbers than
the integers are float32 in all of them. Writes benchmarks/results/perplexity.json and
perplexity.md, two tables.
"""

import contextlib
import io
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support import record
from tools.make_demo import CHATS
from tools.recite import recited

MADE: dict[str, tuple[str, int | None, bool]] = {  # method, group, symmetric
    "int8": ("int8", None, True),
    "int4": ("int4", None, True),
    "int4, asymmetric": ("int4", None, False),
    "int4 in groups of 32": ("int4", 32, True),
    "int4 in groups of 32, asymmetric": ("int4", 32, False),
    "gptq": ("gptq", None, True),
    "gptq, asymmetric": ("gptq", None, False),
    "gptq in groups of 32": ("gptq", 32, True),
    "gptq in groups of 32, asymmetric": ("gptq", 32, False),
    "awq": ("awq", None, True),
    "awq, asymmetric": ("awq", None, False),
    "awq in groups of 32": ("awq", 32, True),
    "awq in groups of 32, asymmetric": ("awq", 32, False),
}
FLOATS = ("float32", "bfloat16")


def perplexity(params: Any, sheets: list[Any]) -> float:
    """Of the tokens that judge."""
    import jax

    from qwen_jax.decoding import decode

    loss, judged = 0.0, 0
    for sheet in sheets:
        scores = np.asarray(jax.nn.log_softmax(decode.score(params, sheet.ids)[:, :-1]))
        found = np.take_along_axis(scores, sheet.ids[:, 1:, None], axis=2)[..., 0]
        loss -= float(found[sheet.judged[:, 1:]].sum(dtype=np.float64))
        judged += int(sheet.judged[:, 1:].sum())
    return math.exp(loss / judged)


def measured(model: Path, dtype: str, sheets: list[Any]) -> dict[str, float]:
    """A loaded checkpoint's numbers, and the bytes of its blocks on a disk."""
    import jax

    from qwen_jax import load, memory
    from qwen_jax.nn import quant

    params = load(model, dtype=dtype)
    blocks = memory.by_dtype(jax.tree.leaves(quant.at_rest(params).blocks))
    return {
        "perplexity": round(perplexity(params, sheets), 5),
        "recited": round(recited(params), 4),
        "block_bytes": sum(blocks.values()),
    }


def by_kind(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Layer kind -> the mean share of its outputs' energy that is lost, by method."""
    kinds: dict[str, list[dict[str, float]]] = {}
    for name, errors in report["layers"].items():
        kinds.setdefault(name.split(".", 2)[2], []).append(errors)
    return {
        kind: {how: float(f"{np.mean([e[how] for e in errors]):.3g}") for how in errors[0]}
        for kind, errors in kinds.items()
    }


def table(models: dict[str, Any]) -> str:
    lines = ["| | blocks | perplexity | answers recited |", "|---|--:|--:|--:|"]
    for name, row in models.items():
        size = f"{row['block_bytes'] / 1e6:.2f} MB"
        lines.append(f"| {name} | {size} | {row['perplexity']:.5f} | {row['recited']:.1%} |")
    kinds = next(row["layers"] for row in models.values() if "layers" in row)
    lines += [
        "",
        "| output energy lost | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for name, row in models.items():
        method = name.partition(" ")[0].rstrip(",")
        for how in {"gptq": ("nearest", "gptq"), "awq": ("awq",)}.get(method, ()):
            shares = " | ".join(f"{errors[how]:.1e}" for errors in row["layers"].values())
            lines.append(f"| {name.replace(method, how)} | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    import convert
    from convert.calibration import read_sheets
    from convert.quantize import REPORT
    from qwen_jax.bundled import CHECKPOINT
    from qwen_jax.text.tokenizer import Tokenizer

    _, held = read_sheets(CHATS, Tokenizer.load(CHECKPOINT))
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        plain = convert.to_native(CHECKPOINT, Path(root) / "plain")
        for dtype in FLOATS:
            models[dtype] = measured(plain, dtype, held)
            print(dtype, models[dtype], file=sys.stderr, flush=True)
        for name, (method, group, symmetric) in MADE.items():
            settings = convert.QuantizeOptions(method, group, symmetric, head=False)
            made = convert.to_native(
                CHECKPOINT, Path(root) / name, quantize=settings, calibration=CHATS
            )
            report = json.loads((made / REPORT).read_text())
            models[name] = measured(made, "float32", held) | {
                "layers": by_kind(report),
                "perplexity_of_convert": report["perplexity"],
                "tokens": report["tokens"],
                "loses_more_in": [
                    layer
                    for layer, lost in report["layers"].items()
                    if lost.get(method, 0) >= lost["nearest"]
                ],
            }
            print(name, models[name], file=sys.stderr, flush=True)
    text = table(models)
    result = {
        "command": "python -m benchmarks.perplexity",
        "machine": record.machine(),
        "versions": record.versions("jax", "jaxlib", "flax", "numpy"),
        "models": models,
    }
    record.write("perplexity", result, text)
    print(text)


if __name__ == "__main__":
    main()
