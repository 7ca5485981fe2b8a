"""The command line: --model MODEL --data FILES --out FOLDER, and what TrainConfig says."""

from collections.abc import Sequence

from qwen_jax.cli import run
from qwen_jax.program import huge_pages


def command(arguments: Sequence[str] | None = None, prog: str = "python -m train") -> None:
    from qwen_jax import model_folder
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard
    from qwen_jax.program import imports
    from train.settings import GROUPS, TrainConfig

    settings = reading.read(TrainConfig, prog, arguments, GROUPS, extra="train")
    settings.check()
    model_folder.expect(settings.model)
    with imports.of_jax():
        import logging

        from train.run import fine_tune

    logging.disable()  # orbax logs the tracebacks of what it raises
    fine_tune(settings)


if __name__ == "__main__":
    huge_pages.ask()
    run(command)
