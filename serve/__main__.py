"""The command: python -m serve --model demo --port 8000."""

import tyro

from qwen_jax.__main__ import run
from serve.server import serve
from serve.settings import ServeConfig

if __name__ == "__main__":
    run(lambda: serve(tyro.cli(ServeConfig, prog="python -m serve")))
