"""Module paths that the guides once named: each still gives the module that it is now."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import qwen_jax
from qwen_jax import adapters, moved
from qwen_jax.adapters import attach

OLD = """sharding decode completion lora quant integer_matmul peft peft_config tokenizer chatml
    model sampling rope native""".split()


def test_the_table_has_them():
    assert {f"qwen_jax.{name}" for name in OLD} == moved.PATHS.keys()


@pytest.mark.parametrize("name", OLD)
def test_an_old_path_is_the_same_module(name):
    new = importlib.import_module(moved.PATHS[f"qwen_jax.{name}"])
    assert importlib.import_module(f"qwen_jax.{name}") is getattr(qwen_jax, name) is new
    assert new.__name__ == new.__spec__.name == moved.PATHS[f"qwen_jax.{name}"]


def test_every_way_to_say_it():
    """In a fresh process, where nothing else has imported the modules."""
    code = """
from qwen_jax.sharding import make_mesh
from qwen_jax import peft
import qwen_jax.completion as completion
import qwen_jax
assert qwen_jax.lora.fuse and peft.read and completion.complete
import qwen_jax.nn.sharding
assert make_mesh is qwen_jax.nn.sharding.make_mesh
try:
    import qwen_jax.nothing
except ModuleNotFoundError as error:
    assert "qwen_jax.nothing" in str(error)
else:
    raise AssertionError
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True)


@pytest.mark.parametrize("name", ["add", "add_all", "extract", "fresh", "merger", "check"])
def test_adapters_are_reached_by_their_room(name):
    assert getattr(adapters, name) is getattr(attach, name)
