"""What a command loads before its first word: nothing that it does not use."""

import json
import subprocess
import sys
from pathlib import Path

# what each may load beside what those before it may; flax brings optax and rich, orbax uvloop
LOADS = {
    "qwen_jax": "",
    "qwen_jax.cli": "",
    "qwen_jax.__main__": "",
    "qwen_jax.demo": "",
    "convert.__main__": "",
    "serve.__main__": "",
    "serve.bench": "",
    "serve.chat": "",
    "train.__main__": "",
    "qwen_jax.evaluate.__main__": "tyro",
    "qwen_jax.plan.__main__": "",
    "qwen_jax.profile.__main__": "",
    "qwen_jax.command.answering": "flax jax numpy optax rich tiktoken",
    "convert.native": "",
    "qwen_jax.evaluate.run": "",
    "qwen_jax.plan.estimate": "",
    "serve.server": "h11 llguidance prometheus_client pydantic starlette uvicorn",
    "train.run": "grain orbax tensorstore uvloop",
}
LATE = {
    *("httpx", "huggingface_hub", "jinja2", "json5", "markdown_it", "matplotlib", "modelscope"),
    *("prompt_toolkit", "rapidfuzz", "safetensors", "tensorboardX"),
}
CODE = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(json.dumps([name, sorted({module.partition(".")[0] for module in sys.modules})]))
"""


def test_a_command_loads_what_it_uses() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CODE, *LOADS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = LATE.union(*(names.split() for names in LOADS.values()))
    allowed: set[str] = set()
    for line in ran.stdout.splitlines():
        name, modules = json.loads(line)
        allowed |= set(LOADS[name].split())
        assert heavy.intersection(modules) <= allowed, name
    assert {"jax", "orbax", "uvicorn"} <= heavy.intersection(modules)  # the names are theirs
