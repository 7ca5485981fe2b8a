"""Speed and memory of generation, as the original's tables have them: python -m qwen_jax.profile.

Each measurement generates LENGTH tokens from a prompt of one, greedily and past every end. The
original's figures are tokens a second and the memory of one A100-SXM4-80G.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from qwen_jax.cli import run
from qwen_jax.program.limits import CACHE_DTYPES

GROUPS = {  # of --help
    "measurements": "lengths batches cache_dtypes attention",
    "results": "output",
    "model and memory": "dtype",
    "device and process": "mesh_data mesh_fsdp mesh_tensor coordinator processes process",
}


def main(
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    lengths: str = "2048,8192",
    batches: str = "1",
    cache_dtypes: str = "default",
    attention: Literal["triton", "mosaic", "llvm", "xla"] | None = None,
    output: Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    mesh_data: int = 1,
    mesh_fsdp: int = 1,
    mesh_tensor: int | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Measure speed and memory of generation, beside the original's figures.

    Args:
        folder: Folder that `qwen-jax convert` wrote, or "demo".
        lengths: Numbers of tokens to generate, with commas between them.
        batches: Numbers of answers at once, with commas between them.
        cache_dtypes: Types of cached keys and values: default, bfloat16, int8, ...
        attention: Form of attention; by default, the device's kernel where it can run.
        output: Folder for profile.json, profile.md and, with matplotlib, profile.png.
        dtype: Type of the parameters; by default, as stored.
        mesh_data: Devices that hold copies of the model.
        mesh_fsdp: Devices that split the weights' width.
        mesh_tensor: Devices that share each matrix product; by default, all that are left.
        coordinator: HOST:PORT of process 0 in a run of several, or "auto" to ask the machines; by
            default, what the environment, Slurm or the TPU says.
        processes: Number of processes in the run.
        process: Number of this process, counted from 0.
    """
    from qwen_jax import model_folder
    from qwen_jax.program import imports, limits, progress

    wanted = [
        (length, batch, None if cache == "default" else cache)
        for cache in _caches(cache_dtypes)
        for batch in _numbers("batches", batches)
        for length in _numbers("lengths", lengths)
    ]
    limits.expect(
        mesh_data=mesh_data,
        mesh_fsdp=mesh_fsdp,
        mesh_tensor=mesh_tensor,
        coordinator=coordinator,
        processes=processes,
        process=process,
    )
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is a file; give a folder")
    model_folder.expect(folder)
    with imports.of_jax():  # late: --help and a wrong option need none
        import jax

        from qwen_jax import distributed
        from qwen_jax.checkpoint import load
        from qwen_jax.nn.sharding import make_mesh
        from qwen_jax.profile.measure import beside, measure, precision, table, write

    distributed.join(coordinator, processes, process)
    split = jax.device_count() > 1 or (mesh_data, mesh_fsdp, mesh_tensor) != (1, 1, None)
    params = load(folder, make_mesh(mesh_data, mesh_fsdp, mesh_tensor) if split else None, dtype)
    name, kind = Path(folder).name, precision(params)
    device = jax.devices()[0]
    report: dict[str, Any] = {"model": name, "precision": kind, "rows": []}
    report |= {"device": f"{device.device_kind} x {jax.device_count()}", "jax": jax.__version__}
    for length, batch, cache in wanted:
        with progress.working(f"measuring {length} tokens x {batch}"):
            found = measure(params, length, batch, cache, attention)
        report["rows"].append(beside(name, kind, found))
        if jax.process_index() == 0:
            row = report["rows"][-1]
            print(f"{length} tokens x {batch}: {row['tokens_per_second']} tokens/s", flush=True)
    if jax.process_index() == 0:
        print(f"\n{table(report)}")
        if output is not None:
            write(report, output)


def _caches(text: str) -> list[str]:
    names, known = [name.strip() for name in text.split(",")], ("default", *CACHE_DTYPES)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--cache-dtypes has {unknown[0]!r}, wanted some of {', '.join(known)}")
    return names


def _numbers(name: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part) <= 1 << 20 for part in parts):
        raise ValueError(f"--{name} is {text!r}, wanted numbers from 1 on with commas between them")
    return [int(part) for part in parts]


def command(
    arguments: Sequence[str] | None = None, prog: str = "python -m qwen_jax.profile"
) -> None:
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard

    reading.read(main, prog, arguments, GROUPS)


if __name__ == "__main__":
    run(command)
