"""The command line: --model MODEL --data FILES --out FOLDER, and what TrainConfig says."""

import logging
from collections.abc import Sequence

import tyro

import train
from qwen_jax.cli import run


def command(arguments: Sequence[str] | None = None, prog: str = "python -m train") -> None:
    logging.disable()  # orbax logs the tracebacks of what it raises
    train.fine_tune(tyro.cli(train.TrainConfig, prog=prog, args=arguments))


if __name__ == "__main__":
    run(command)
