"""The command line and the demo: what they print where, and how they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from qwen_jax import __main__ as command
from qwen_jax import demo

ROOT = Path(__file__).parents[2]
NOISE = ("Traceback", "Error", "Exception", "Warning")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Callable[..., subprocess.Popen]:
    """start(*arguments): a program beside this one; they share a cache, empty at first."""
    cache = tmp_path_factory.mktemp("cache")
    ours = {"XDG_CACHE_HOME": str(cache), "JAX_NUM_CPU_DEVICES": "1", "PYTHONWARNINGS": "error"}
    compiled = {"JAX_ENABLE_COMPILATION_CACHE": "true"}
    pipe = subprocess.PIPE
    return lambda *arguments: subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | ours | compiled,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    )


@pytest.fixture(scope="module")
def demos(start) -> list[tuple[int, str, str]]:
    """Two demos at once, the first of this user: exit code, standard output and error of each."""
    return [finish(run) for run in [start("-m", "qwen_jax.demo") for _ in range(2)]]


def finish(run: subprocess.Popen, text: str = "") -> tuple[int, str, str]:
    out, error = run.communicate(text.encode(), timeout=100)
    return run.returncode, out.decode(), error.decode()


def test_two_demos_at_once(demos):
    answers = []
    for code, out, error in demos:
        assert code == 0, error
        assert "2. converted to" in out
        assert error.count(" tokens, finished by ") == error.count("\n") == 2
        answers.append(out[out.index("4. its answers") :])
    assert answers[0] == answers[1]
    assert answers[0].count("User: ") == 2


def test_an_answer(start, demos):
    """The prompt as an argument or on standard input; the answer, and beside it how it came."""
    how = ("--max-new-tokens", "5", "--seed", "1")
    runs = [start("-m", "qwen_jax", "demo", *given, *how) for given in (["猫?"], [])]
    (code, out, error), other = finish(runs[0]), finish(runs[1], "猫?\n")
    assert code == 0, error
    assert out.endswith("\n")
    assert out.strip()
    assert error.startswith("[5 tokens, finished by length: the first after ")
    assert error.count("\n") == 1
    assert other[:2] == (code, out)


def test_a_fault_is_one_line(start):
    code, out, error = finish(start("-m", "qwen_jax", "nowhere", "hi"))
    assert (code, out) == (1, "")
    assert error.startswith("error: there is no folder ")
    assert error.count("\n") == 1


def test_a_reader_who_has_enough(start, demos):
    run = start("-m", "qwen_jax", "demo", "hi", "--max-new-tokens", "40")
    run.stdout.close()
    error = run.stderr.read().decode()
    assert (run.wait(100), error) == (1, "")


def test_an_interrupted_answer(start, demos):
    long = ("--max-new-tokens", "8000", "--temperature", "0")
    run = start("-m", "qwen_jax", "demo", "hi", "--complete", *long)
    assert run.stdout.read(1)
    run.send_signal(signal.SIGINT)
    code, _, error = finish(run)
    assert (code, error) == (130, "\ninterrupted\n")


# --- in this process -------------------------------------------------------------------------------
@pytest.fixture
def fault(monkeypatch, capsys) -> Callable[..., str]:
    """fault(...): the one line with which the same call of `main` ends."""
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)

    def run(*arguments, **how) -> str:
        with pytest.raises(SystemExit) as caught:
            command.run(lambda: command.main(*arguments, **how))
        assert capsys.readouterr().out == ""
        assert isinstance(caught.value.code, str)
        assert "\n" not in caught.value.code
        return caught.value.code

    return run


@pytest.fixture(scope="module")
def base(golden, tmp_path_factory) -> Path:
    """A base model without a tokenizer."""
    return convert.to_native(golden("v1/base"), tmp_path_factory.mktemp("base") / "native")


def test_faults(fault, golden, base, tmp_path, monkeypatch):
    assert "Hugging Face checkpoint; convert it first" in fault(str(golden("v1/base")), "hi")
    assert "the prompt is empty; give one as an argument" in fault(str(base), "")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "the prompt is empty" in fault(str(base))
    for complete in (True, False):  # what a base model does in any case
        assert "--system is for chat" in fault(str(base), "hi", system="x", complete=complete)
        assert "checkpoint has no tokenizer" in fault(str(base), "hi", complete=complete)
    assert "temperature is -1" in fault(str(base), "hi", temperature=-1.0)


def test_options_reach_the_model(monkeypatch, base, small, capsys):
    """As load and generate have them; what is not given stays the checkpoint's."""
    seen = []
    params = parrot(small, "x", chat_format="chatml", do_sample=True, top_k=7, temperature=0.5)

    def answer(*arguments, **how):
        seen.append((arguments[1:], how))
        return iter([Completion([1], "yes", "stop")])

    def read(folder, **how):
        seen.append(((folder,), how))
        return params

    monkeypatch.setattr(command, "load", read)
    monkeypatch.setattr(command, "stream_chat", answer)
    command.main("somewhere", "hi")
    (_, how), (given, wishes) = seen
    assert how == {"dtype": None, "cache_dtype": None}
    assert given == ("hi",)
    checkpoint = Sampling(temperature=0.5, top_k=7)
    default = {"system": None, "sampling": checkpoint, "max_new_tokens": None, "seed": None}
    assert wishes == default
    asked = {"system": "x", "max_new_tokens": 3, "seed": 5}
    command.main("somewhere", "hi", temperature=2, dtype="float16", cache_dtype="int8", **asked)
    assert seen[2][1] == {"dtype": "float16", "cache_dtype": "int8"}
    assert seen[3][1] == asked | {"sampling": replace(checkpoint, temperature=2)}
    assert capsys.readouterr().out == "yes\nyes\n"


def test_the_demo_of_another_user_who_was_faster(tmp_path, monkeypatch):
    """The folder appears while this process converts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def work(arguments, **how):
        made = Path(arguments[-1])
        made.mkdir()
        (made / "ours").touch()
        digest = next(tmp_path.glob("qwen_jax")) / names[0]
        digest.mkdir()
        (digest / "theirs").touch()
        return subprocess.CompletedProcess(arguments, 0)

    names = [demo_name(tmp_path, monkeypatch)]
    monkeypatch.setattr(subprocess, "run", work)
    folder = demo.native_folder()
    assert [file.name for file in folder.iterdir()] == ["theirs"]
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]
