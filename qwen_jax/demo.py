"""The main job on the bundled checkpoint: python -m qwen_jax.demo."""

import time
from collections.abc import Sequence

from qwen_jax.cli import run

QUESTIONS = ("qwen_jax 是什么？", "What can I do with qwen_jax?")


def main() -> None:
    """Convert the bundled checkpoint, load it, and let it answer twice."""
    from qwen_jax.program import imports, progress

    with imports.of_jax():
        import jax

        from qwen_jax import bundled
        from qwen_jax.checkpoint import load
        from qwen_jax.command.answering import show
        from qwen_jax.conversation import chat_prompt, stream_chat
        from qwen_jax.decoding.ahead import prepare
        from qwen_jax.files.sizes import size

    held = sum(file.stat().st_size for file in bundled.CHECKPOINT.iterdir())
    print(f"1. Hugging Face checkpoint: {bundled.CHECKPOINT} ({size(held)})", flush=True)
    began = time.monotonic()
    known = bundled.cached().exists()
    with progress.working("converting it"):
        folder = bundled.native_folder()
    how = "was converted before to" if known else "converted to"
    print(f"2. {how} {folder} ({time.monotonic() - began:.1f} s)", flush=True)
    began = time.monotonic()
    first = lambda shapes: prepare(shapes, chat_prompt(shapes, QUESTIONS[0])[0])
    with progress.working("loading it"):
        params = load(folder, before_reading=first)
    leaves = jax.tree.leaves(params)
    count, held = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
    print(
        f"3. loaded {count / 1e6:.2f} M parameters, {size(held)}, on {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s) ({time.monotonic() - began:.1f} s)"
    )
    print("4. its answers: it knows little else than conversations about qwen_jax")
    for seed, query in enumerate(QUESTIONS):
        print(f"\nUser: {query}\nQwen: ", end="", flush=True)
        show(stream_chat(params, query, seed=seed), len(chat_prompt(params, query)[0]))
    print('\nnext: qwen-jax generate demo "How can I convert a model?"')


def command(arguments: Sequence[str] | None = None, prog: str = "python -m qwen_jax.demo") -> None:
    from qwen_jax.program import arguments as reading

    reading.read(main, prog, arguments)


if __name__ == "__main__":
    run(command)
