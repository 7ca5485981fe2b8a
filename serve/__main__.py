"""The command: python -m serve --model demo --port 8000."""

from collections.abc import Sequence

import tyro

from qwen_jax.cli import run
from serve.server import serve
from serve.settings import ServeConfig


def command(arguments: Sequence[str] | None = None, prog: str = "python -m serve") -> None:
    serve(tyro.cli(ServeConfig, prog=prog, args=arguments))


if __name__ == "__main__":
    run(command)
