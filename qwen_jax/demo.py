"""The main job on the bundled checkpoint: python -m qwen_jax.demo."""

import time
from collections.abc import Sequence

import jax
import tyro

from qwen_jax.__main__ import show
from qwen_jax.bundled import CHECKPOINT, native_folder
from qwen_jax.checkpoint import load
from qwen_jax.cli import run
from qwen_jax.conversation import stream_chat


def main() -> None:
    """Convert the bundled checkpoint, load it, and let it answer twice."""
    size = sum(file.stat().st_size for file in CHECKPOINT.iterdir())
    print(f"1. Hugging Face checkpoint: {CHECKPOINT} ({size / 1e6:.1f} MB)")
    began = time.monotonic()
    folder = native_folder()
    print(f"2. converted to {folder} ({time.monotonic() - began:.1f} s)")
    began = time.monotonic()
    params = load(folder)
    leaves = jax.tree.leaves(params)
    count, size = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
    print(
        f"3. loaded {count / 1e6:.2f} M parameters, {size / 1e6:.1f} MB, on {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s) ({time.monotonic() - began:.1f} s)"
    )
    print("4. its answers: it knows little else than conversations about qwen_jax")
    for seed, query in enumerate(("qwen_jax 是什么？", "What can I do with qwen_jax?")):
        print(f"\nUser: {query}\nQwen: ", end="", flush=True)
        show(stream_chat(params, query, seed=seed))


def command(arguments: Sequence[str] | None = None, prog: str = "python -m qwen_jax.demo") -> None:
    tyro.cli(main, prog=prog, args=arguments)


if __name__ == "__main__":
    run(command)
