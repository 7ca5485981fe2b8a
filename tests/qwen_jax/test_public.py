"""The public surface: what it is, how it is asked, and that it costs nothing until it is used."""

import inspect
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import convert
import qwen_jax
import train
from qwen_jax.decoding.completion import complete, stream_completions
from qwen_jax.generate import generate
from qwen_jax.nn.model import Assets, Qwen

PUBLIC = [
    *(getattr(qwen_jax, name) for name in qwen_jax.__all__ if name[0].islower()),
    *(complete, stream_completions, convert.to_native, convert.to_hf, train.fine_tune),
]
ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    line = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_all_there_is() -> None:
    names = "Config Sampling chat embed generate load logits save stream stream_chat".split()
    assert sorted(qwen_jax.__all__) == names
    assert {*names} <= {*dir(qwen_jax)}
    with pytest.raises(AttributeError, match="'qwen_jax' has no attribute 'chats'"):
        _ = qwen_jax.chats


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_keywords_are_spelled_with_their_types(function: Any) -> None:
    for one in (function, *typing.get_overloads(function)):
        parameters = inspect.signature(one).parameters
        assert all(p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
        assert all(p.annotation is not p.empty for p in parameters.values())
        assert inspect.signature(one).return_annotation is not inspect.Signature.empty
        assert not parameters.keys() & {"watch", "eos_ids"}


def test_what_lies_beside_the_arrays_has_a_type() -> None:
    assert typing.get_type_hints(Qwen)["assets"] == Assets | None


def test_nothing_is_imported_before_it_is_used() -> None:
    assert python("import sys, qwen_jax; print('jax' in sys.modules)") == "False\n"


def test_a_function_and_its_file_may_have_one_name() -> None:
    """Whichever is imported first: `qwen_jax.generate` is the function."""
    module = sys.modules["qwen_jax.generate"]
    assert module.generate is qwen_jax.generate is generate
    code = "from qwen_jax.generate import generate, logits; import qwen_jax;"
    assert python(code + "print(qwen_jax.generate is generate)") == "True\n"
    code = "import qwen_jax.decoding.completion, qwen_jax.generate;"
    assert python(code + "print(callable(qwen_jax.generate))") == "True\n"
