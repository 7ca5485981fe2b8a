"""Measure a model by the published tables: python -m qwen_jax.evaluate MODEL --suite SUITE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from qwen_jax.cli import run
from qwen_jax.evaluate.published import SUITES, suite_of

GROUPS = {  # of --help
    "questions": "tasks suite data limit run_generated_code",
    "results": "output",
    "model and memory": "adapter dtype batch",
    "device and process": "mesh_data mesh_fsdp mesh_tensor coordinator processes process",
}


def main(
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    tasks: str | None = None,
    suite: str | None = None,
    data: Path = Path("data"),
    output: Path = Path("evaluation"),
    limit: int | None = None,
    run_generated_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    batch: int = 16,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    adapter: str | None = None,
    mesh_data: int = 1,
    mesh_fsdp: int = 1,
    mesh_tensor: int | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Answer a benchmark's questions and put the scores beside the published ones.

    Args:
        folder: Folder that `qwen-jax convert` wrote, or "demo".
        tasks: Names of tasks with commas between them, such as mmlu,gsm8k_chat; by default, those
            of the suite.
        suite: Row of the published tables, such as qwen-7b-chat, to measure and compare with; by
            default, the one that the folder's name says, for comparison.
        data: Folder with a folder of data for each task, as its authors publish it.
        output: Folder for report.json, report.md and samples/; that of a run which was
            interrupted goes on.
        limit: Number of questions of each task, from its first on.
        run_generated_code: Consent to run programs that the model writes, walled in.
        batch: Texts at once, a power of two.
        dtype: Type of the parameters; by default, as stored.
        adapter: Folder of an adapter in PEFT's format, made for this model.
        mesh_data: Devices that hold copies of the model.
        mesh_fsdp: Devices that split the weights' width.
        mesh_tensor: Devices that share each matrix product; by default, all that are left.
        coordinator: HOST:PORT of process 0 in a run of several, or "auto" to ask the machines; by
            default, what the environment, Slurm or the TPU says.
        processes: Number of processes in the run.
        process: Number of this process, counted from 0.
    """
    from qwen_jax import model_folder
    from qwen_jax.evaluate import questions, report
    from qwen_jax.program import imports, limits

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    chosen = questions.check(names, suite, run_generated_code)
    limits.expect(
        limit=limit,
        adapter=adapter,
        mesh_data=mesh_data,
        mesh_fsdp=mesh_fsdp,
        mesh_tensor=mesh_tensor,
        coordinator=coordinator,
        processes=processes,
        process=process,
    )
    if not 1 <= batch <= 4096 or batch & (batch - 1):
        raise ValueError(f"--batch is {batch}, wanted a power of two from 1 to 4096")
    report.expect_free(output)
    questions.read(chosen, data, 1, suite is not None and not names, run_generated_code)
    model_folder.expect(folder)
    with imports.of_jax():  # late: --help and a wrong option need none of it
        import jax

        from qwen_jax import distributed
        from qwen_jax.checkpoint import load
        from qwen_jax.evaluate.progress import Bar
        from qwen_jax.evaluate.run import evaluate
        from qwen_jax.nn.sharding import make_mesh

    distributed.join(coordinator, processes, process)
    split = jax.device_count() > 1 or (mesh_data, mesh_fsdp, mesh_tensor) != (1, 1, None)
    mesh = make_mesh(mesh_data, mesh_fsdp, mesh_tensor) if split else None
    params = load(folder, mesh, dtype=dtype, adapter=adapter)
    made = evaluate(
        params,
        Path(folder).name,
        names,
        data,
        output,
        suite=suite or suite_of(folder),
        adapter=None if adapter is None else Path(adapter),
        limit=limit,
        run_generated_code=run_generated_code,
        batch=batch,
        tell=Bar() if jax.process_index() == 0 else lambda task, done, count: None,
    )
    if jax.process_index() == 0:
        print(f"{report.markdown(made)}\nwritten to {output}: report.json, report.md, samples/")


def command(
    arguments: Sequence[str] | None = None, prog: str = "python -m qwen_jax.evaluate"
) -> None:
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard

    tasks = ", ".join(dict.fromkeys(task for row in SUITES.values() for task in row))
    reading.read(main, prog, arguments, GROUPS, extra="evaluate", note=f"Tasks: {tasks}.")


if __name__ == "__main__":
    run(command)
