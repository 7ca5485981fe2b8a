"""The command: python -m serve --model demo --port 8000."""

from collections.abc import Sequence

from qwen_jax.cli import run


def command(arguments: Sequence[str] | None = None, prog: str = "python -m serve") -> None:
    from qwen_jax import model_folder
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard
    from qwen_jax.program import imports
    from serve.settings import GROUPS, ServeConfig

    settings = reading.read(ServeConfig, prog, arguments, GROUPS, extra="serve")
    model_folder.expect(settings.model)
    run = settings.coordinator, settings.processes, settings.process
    model_folder.begin_reading(settings.model, *run)
    with imports.of_jax():
        from serve.server import serve

    serve(settings)


if __name__ == "__main__":
    run(command)
