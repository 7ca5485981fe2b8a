"""The command line: --model MODEL --data FILES --out FOLDER, and what Settings says."""

import logging

import tyro

import train
from qwen_jax.__main__ import run
from train import distributed


def main() -> None:
    train.fine_tune(tyro.cli(train.TrainConfig, prog="python -m train"))


if __name__ == "__main__":
    logging.disable()  # orbax logs the tracebacks of what it raises
    try:
        run(main)
    except BaseException as error:
        distributed.leave(error)
        raise
