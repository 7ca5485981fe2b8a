"""Programs made before anybody waits for them: python -m qwen_jax.warm MODEL."""

from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from qwen_jax.cli import run

GROUPS = {  # of --help
    "answers": "prompt_tokens max_new_tokens",
    "model and memory": "dtype cache_dtype",
    "device": "mesh_data mesh_fsdp mesh_tensor",
}


def main(
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    prompt_tokens: int = 256,
    max_new_tokens: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    cache_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None,
    mesh_data: int = 1,
    mesh_fsdp: int = 1,
    mesh_tensor: int | None = None,
) -> None:
    """Compile what `generate` will call, and keep it; the weights are not read.

    Give the options that the answers will be given: others make other programs.

    Args:
        folder: Folder that `qwen-jax convert` wrote, or "demo".
        prompt_tokens: Longest prompt to make programs for; a chat's form counts.
        max_new_tokens: Most tokens of an answer; by default, the checkpoint's own limit, or 512.
        dtype: Type of the parameters; by default, as stored.
        cache_dtype: Type of cached keys and values.
        mesh_data: Devices that hold copies of the model.
        mesh_fsdp: Devices that split the weights' width.
        mesh_tensor: Devices that share each matrix product; by default, all that are left.
    """
    from qwen_jax import model_folder
    from qwen_jax.program import imports, limits, progress

    limits.expect(
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens,
        mesh_data=mesh_data,
        mesh_fsdp=mesh_fsdp,
        mesh_tensor=mesh_tensor,
    )
    model_folder.expect(folder)
    with imports.of_jax():
        import jax

        from qwen_jax.checkpoint import shapes
        from qwen_jax.decoding import ahead, executables
        from qwen_jax.nn.sharding import make_mesh

    if (place := executables.folder()) is None:
        raise ValueError(
            f"programs are not kept: JAX_ENABLE_COMPILATION_CACHE is off, or {executables.FOLDER} "
            "is empty"
        )
    split = jax.device_count() > 1 or (mesh_data, mesh_fsdp, mesh_tensor) != (1, 1, None)
    mesh = make_mesh(mesh_data, mesh_fsdp, mesh_tensor) if split else None
    model = shapes(folder, mesh, dtype)
    wanted = ahead.sizes(model, prompt_tokens, max_new_tokens)
    before = set(place.iterdir()) if place.exists() else set()
    with progress.working("making programs for sizes of prompts", len(wanted), "sizes"):
        for size in wanted:
            for program in ahead.prepare(model, [0] * size, max_new_tokens, cache_dtype):
                program.result()
            progress.advance(1)
    made = len(set(place.iterdir()) - before)
    print(f"{made} programs made, for {len(wanted)} sizes of prompts; kept in {place}")


def command(arguments: Sequence[str] | None = None, prog: str = "python -m qwen_jax.warm") -> None:
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard

    reading.read(main, prog, arguments, GROUPS)


if __name__ == "__main__":
    run(command)
