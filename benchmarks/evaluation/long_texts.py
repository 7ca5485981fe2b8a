"""A real model on long texts: perplexity beside transformers, a needle at every depth.

    python -m benchmarks.evaluation.long_texts        # make long-texts

The text is Python's own reference, which every Python brings (pydoc_data.topics). Float32 on both
sides, each length in one piece. Writes benchmarks/results/long_texts.json and the picture
docs/images/needles.png. What is known stands there already when this is started again.
"""

import json
import math
import sys
from typing import Any

import tyro

from benchmarks.evaluation import real
from benchmarks.evaluation.theirs import PACKAGES, Theirs
from benchmarks.support import record
from qwen_jax.evaluate import lengths
from qwen_jax.files import atomic

OUT = real.HOME.parent / "long_texts"
PICTURE = record.RESULTS.parents[1] / "docs/images/needles.png"


def text() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def kept(name: str, make: Any) -> Any:
    """What `make` finds, or what it found when this was started before."""
    file = OUT / f"{name}.json"
    if not file.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file, json.dumps(make()))
    return json.loads(file.read_text())


def ours(sizes: list[int], hidden: list[int], depths: list[int]) -> tuple[Any, Any]:
    """Perplexities, and the grid of needles, each kept as soon as it is known."""
    from qwen_jax import load

    params = load(real.made(), dtype="float32")
    assert params.assets is not None
    ids = params.assets.tokenizer.encode(text())
    perplexity = lambda size: lengths.perplexities(params, [ids], [size])[size]
    found = {str(n): kept(f"ours_{n}", lambda n=n: perplexity(n)) for n in sizes}
    needle = lambda size: lengths.needles(params, text(), [size], depths)[size]
    named = "_".join(map(str, depths))
    return found, {n: kept(f"needles_{n}_at_{named}", lambda n=n: needle(n)) for n in hidden}


def theirs(sizes: list[int]) -> dict[int, float]:
    """Of one pass over the longest; this model's scores of a token know nothing of later ones."""
    model = Theirs(real.REFERENCE)
    ids = model.ids(text()[: 16 * max(sizes)])[: max(sizes)]
    losses = model.losses(ids)
    return {size: math.exp(losses[: size - 1].mean()) for size in sizes}


def main(
    perplexity: str = "512,1024,2048,4096,8192",
    needle: str = "512,1024,2048,4096,8192",
    depths: str = "0,25,50,75,100",
) -> None:
    """Measure; what was found before and is not asked for stays.

    Args:
        perplexity: Tokens of the texts, with a comma between them; "" for none.
        needle: Tokens of the prompts that hide a number; "" for none.
        depths: Percent of the text before the number.
    """
    numbers = lambda said: [int(number) for number in said.split(",") if number]
    asked = numbers(perplexity), numbers(needle), numbers(depths)
    our, found = ours(*asked)
    file = record.RESULTS / "long_texts.json"
    before = json.loads(file.read_text()) if file.exists() else {"perplexity": {}, "needles": {}}
    grid = before["needles"].get("grid", {})
    for size, row in found.items():
        every = grid.get(str(size), {}) | row
        grid[str(size)] = {depth: every[depth] for depth in sorted(every, key=float)}
    grid = {size: grid[size] for size in sorted(grid, key=int)}
    their = kept(f"theirs_{perplexity}", lambda: theirs(asked[0])) if our else {}
    beside = {size: {"ours": our[size], "transformers": their[size]} for size in our}
    beside = before["perplexity"] | beside
    pictured = {int(n): {float(d): found for d, found in row.items()} for n, row in grid.items()}
    if pictured:
        lengths.draw(pictured, "Qwen2.5-Coder-0.5B-Instruct", PICTURE)
    cells = [found for row in grid.values() for found in row.values()]
    result = {
        "command": " ".join(["python -m benchmarks.evaluation.long_texts", *sys.argv[1:]]),
        "model": "Qwen2.5-Coder-0.5B-Instruct, from a Q4_K_M GGUF; float32",
        "text": "pydoc_data.topics, in the order of its names",
        "machine": record.machine(),
        "versions": record.versions("jax", "jaxlib", "flax", *PACKAGES),
        "perplexity": beside,
        "largest_relative_difference": max(
            abs(found["ours"] / found["transformers"] - 1) for found in beside.values()
        ),
        "needles": {"found": sum(cells), "asked": len(cells), "grid": grid},
    }
    record.write("long_texts", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
