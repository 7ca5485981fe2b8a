"""The examples run, on the bundled model, and say what they are there to say."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import qwen_jax
from qwen_jax.nn.sharding import make_mesh
from tests.serve.conftest import running

Run = Callable[..., str]  # the fixture
ONE = make_mesh(devices=jax.devices()[:1])
FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example in this process, and what it prints.

    A model is on one device where the example does not say: fewer programs, and sooner compiled.
    """
    load, one = qwen_jax.load, {"mesh": ONE}
    monkeypatch.setattr(qwen_jax, "load", lambda model, **how: load(model, **(one | how)))

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the bundled model, with few programs to compile."""
    params = qwen_jax.load("demo", mesh=ONE)
    how: dict[str, Any] = {"slots": 1, "max_length": 1024, "chunk": 1024, "step_tokens": 1}
    with running(params, **how) as server:
        yield server.url


def test_generate(run: Run) -> None:
    lines = run("generate").splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("I am the demo model of qwen_jax")


def test_batch_chat(run: Run) -> None:
    out = run("batch_chat")
    assert "\n  I am the demo model" in out
    assert "\n  你好！" in out
    assert "welcome" in out


def test_stream(run: Run) -> None:
    answer, summary = run("stream").splitlines()
    assert answer.startswith("You can convert Qwen checkpoints")
    assert summary.endswith("finished by stop]")


def test_score(run: Run) -> None:
    assert run("score").endswith("likelier: qwen_jax is Qwen in pure JAX\n")


def test_sharded(run: Run) -> None:
    mesh, layer, answer = run("sharded").splitlines()
    assert mesh == "mesh: {'data': 2, 'fsdp': 2, 'tensor': 2}"
    assert layer == "mlp.up: (352, 128) in pieces of (176, 64)"
    assert "mesh" in answer


def test_finetune(run: Run) -> None:
    assert run("finetune").endswith("\nI am Ada.\n")


def test_openai_client(run: Run, url: str) -> None:
    whole, stream, guess = run("openai_client", url).splitlines()
    assert whole.startswith("qwen_jax is Qwen in pure JAX")
    assert whole.endswith(" tokens")
    assert stream.startswith("qwen_jax")
    assert "'language': " in guess


def test_react_agent(run: Run, url: str) -> None:
    """The model asks, the program answers, and the conversation comes to an end."""
    call, *_, end = run("react_agent", url, "required").splitlines()
    assert call.startswith("temperature({'city': ")
    assert call.endswith("degrees Celsius")
    assert end.startswith(("answer: ", "no answer after 4 calls"))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # LangChain leaves its connections open
def test_langchain_client(run: Run, url: str) -> None:
    pytest.importorskip("langchain_openai", reason="`make clients` has it")
    answer, guess = run("langchain_client", url, "tiny").splitlines()
    assert answer.startswith("qwen_jax is Qwen in pure JAX")
    assert guess.startswith("language=")


def test_every_example_is_run() -> None:
    tests = {test.removeprefix("test_") for test in globals() if test.startswith("test_")}
    examples = {file.stem for file in FOLDER.glob("*.py")}
    assert examples <= tests
    listed = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"]({name}.py)" in listed for name in examples)
