"""Generate from the command line: python -m qwen_jax MODEL [PROMPT]."""

from collections.abc import Sequence

from qwen_jax.cli import run


def command(arguments: Sequence[str] | None = None, prog: str = "python -m qwen_jax") -> None:
    from qwen_jax import model_folder
    from qwen_jax.command.settings import GROUPS, GenerateConfig
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard
    from qwen_jax.program import imports

    settings = reading.read(GenerateConfig, prog, arguments, GROUPS)
    model_folder.expect(settings.folder)
    settings = settings.with_prompt()
    run = settings.coordinator, settings.processes, settings.process
    model_folder.begin_reading(settings.folder, *run)
    with imports.of_jax():
        from qwen_jax.command.answering import answer

    answer(settings)


if __name__ == "__main__":
    run(command)
