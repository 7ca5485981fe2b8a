"""Chat in a terminal: python -m serve.chat --model demo, or --url of a server."""

from collections.abc import Sequence

from qwen_jax.cli import run


def command(arguments: Sequence[str] | None = None, prog: str = "python -m serve.chat") -> None:
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard
    from serve.cli.settings import GROUPS, ChatConfig

    settings = reading.read(ChatConfig, prog, arguments, GROUPS, extra="serve")
    from serve.cli.conversation import converse

    converse(settings)


if __name__ == "__main__":
    run(command)
