"""The command line and the demo: what they print where, and how they end."""

import gc
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import convert
from qwen_jax import Sampling
from qwen_jax.bundled import native_folder
from qwen_jax.cli import run
from qwen_jax.command import answering
from qwen_jax.command.settings import GenerateConfig
from qwen_jax.decoding.completion import Completion
from qwen_jax.nn.model import Qwen
from qwen_jax.text.tokenizer import Tokenizer
from tests.conftest import Golden
from tests.processes import said
from tests.qwen_jax.memorised_model import memorised_model
from tests.qwen_jax.test_cli import here

ROOT = Path(__file__).parents[3]
QUERY = "What can I do with qwen_jax?"  # the demo's second, with seed 1


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen[bytes]]:
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
def demos(start: Callable[..., Any]) -> list[tuple[int, str, str]]:
    """Two demos at once, the first of this user: exit code, standard output and error of each."""
    return [finish(run) for run in [start("-m", "qwen_jax.demo") for _ in range(2)]]


def finish(run: subprocess.Popen[bytes], text: str = "") -> tuple[int, str, str]:
    out, error = run.communicate(text.encode(), timeout=100)
    return run.returncode, out.decode(), said(error.decode())


def test_two_demos_at_once(demos: list[tuple[int, str, str]]) -> None:
    answers = []
    for code, out, error in demos:
        assert code == 0, error
        assert "2. converted to" in out
        assert error.count(" tokens, finished by ") == error.count("\n") == 2
        answers.append(out[out.index("4. its answers") :])
    assert answers[0] == answers[1]
    assert answers[0].count("User: ") == 2


def test_an_answer(start: Callable[..., Any], demos: list[tuple[int, str, str]]) -> None:
    """The prompt as an argument or on standard input; the answer, and beside it how it came."""
    how = ("--seed", "1")
    code, out, error = finish(start("-m", "qwen_jax", "demo", QUERY, *how))
    assert code == 0, error
    assert out.startswith("You can convert Qwen checkpoints")
    assert out == demos[0][1].partition(f"User: {QUERY}\nQwen: ")[2].partition("\nnext: ")[0]
    told = r"\[\d+ tokens, finished by stop; the first after [\d.]+ s; then [\d.]+ tokens/s\]\n"
    assert re.match(told, error)
    assert error.count("\n") == 2
    assert finish(start("-m", "qwen_jax", "demo", *how), f"{QUERY}\n")[:2] == (0, out)


def test_a_fault_is_one_line(start: Callable[..., Any]) -> None:
    code, out, error = finish(start("-m", "qwen_jax", "nowhere", "hi"))
    assert (code, out) == (1, "")
    assert error.startswith("error: there is no folder ")
    assert error.count("\n") == 1


def test_a_reader_who_has_enough(
    start: Callable[..., Any], demos: list[tuple[int, str, str]]
) -> None:
    with start("-m", "qwen_jax", "demo", QUERY, "--max-new-tokens", "48") as run:
        run.stdout.close()
        error = said(run.stderr.read().decode())
    assert (run.returncode, error) == (1, "")


def test_an_interrupted_answer(
    start: Callable[..., Any], demos: list[tuple[int, str, str]]
) -> None:
    long = ("--max-new-tokens", "8000", "--temperature", "0")
    run = start("-m", "qwen_jax", "demo", "hi", "--complete", *long)
    assert run.stdout.read(1)
    run.send_signal(signal.SIGINT)
    code, _, error = finish(run)
    assert (code, error) == (130, "interrupted\n")


# --- in this process ---------------------------------------------------------------------------
@pytest.fixture
def fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """fault(...): the one line with which the same call of `main` ends."""
    here(monkeypatch)

    def end(*arguments: Any, **how: Any) -> str:
        names = dict(zip(("folder", "prompt"), arguments, strict=False))
        with pytest.raises(SystemExit) as caught:
            run(lambda: answering.answer(GenerateConfig(**names, **how).with_prompt()))
        assert capsys.readouterr().out == ""
        assert isinstance(caught.value.code, str)
        assert "\n" not in caught.value.code
        return caught.value.code

    return end


@pytest.fixture(scope="module")
def base(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model without a tokenizer."""
    return convert.to_native(golden("v1/base"), tmp_path_factory.mktemp("base") / "native")


def test_faults(
    fault: Callable[..., Any],
    golden: Golden,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "Hugging Face checkpoint; convert it first" in fault(str(golden("v1/base")), "hi")
    assert "the prompt is empty; give one as an argument" in fault(str(base), "")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "the prompt is empty" in fault(str(base))
    for complete in (True, False):  # what a base model does in any case
        assert "--system is for chat" in fault(str(base), "hi", system="x", complete=complete)
        assert "checkpoint has no tokenizer" in fault(str(base), "hi", complete=complete)
    assert "temperature is -1" in fault("demo", "hi", temperature=-1.0)
    assert "--top-k would change nothing at temperature 0" in fault(
        "demo", "hi", temperature=0.0, top_k=5
    )


def test_options_reach_the_model(
    monkeypatch: pytest.MonkeyPatch,
    base: Path,
    small: Tokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As load and generate have them; what is not given stays the checkpoint's."""
    seen: list[Any] = []
    params = memorised_model(
        small, "x", chat_format="chatml", do_sample=True, top_k=7, temperature=0.5
    )

    def reply(*arguments: str | Qwen, **how: Any) -> Any:
        seen.append((arguments[1:], how))
        return iter([Completion([1], "yes", "stop")])

    def read(folder: str, mesh: Any, before_reading: Any, **how: str | None) -> Qwen:
        seen.append(((folder, dict(mesh.shape)), how))
        return params

    def answer(**how: Any) -> None:
        answering.answer(GenerateConfig(folder=str(base), prompt="hi", **how))

    monkeypatch.setattr(answering, "load", read)
    monkeypatch.setattr(answering, "outline", lambda *of: params)
    monkeypatch.setattr(answering, "stream_chat", reply)
    answer()
    ((_, mesh), how), (given, samplings) = seen
    assert mesh == {"data": 1, "fsdp": 1, "tensor": 8}
    assert how == {"dtype": None, "adapter": None}
    assert given == ("hi",)
    checkpoint = Sampling(temperature=0.5, top_k=7)
    names = ("system", "max_new_tokens", "seed", "cache_dtype", "attention", "draft_tokens")
    assert samplings == dict.fromkeys(names) | {"sampling": checkpoint, "stop": ()}
    asked: dict[str, Any] = {"system": "x", "max_new_tokens": 3, "seed": 5, "cache_dtype": "int8"}
    sizes: dict[str, Any] = {"mesh_data": 2, "mesh_fsdp": 2}
    asked |= {"stop": ("a", "b"), "attention": "xla", "draft_tokens": 2}
    changes: dict[str, Any] = {"temperature": 2, "top_p": 0.5, "top_k": 3}
    changes["repetition_penalty"] = 1.5
    answer(dtype="float16", timings=True, **changes, **asked, **sizes)
    assert seen[2][0][1] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert seen[2][1] == {"dtype": "float16", "adapter": None}
    assert seen[3][1] == asked | {"sampling": replace(checkpoint, **changes)}
    shown = capsys.readouterr()
    assert shown.out == "yes\nyes\n"
    laps = re.findall(r"^(\w[\w, ]+?) +\d+\.\d\d s$", shown.err, re.MULTILINE)
    prompt, *others = ["files, tokenizer, prompt", "weights", "first token", "more tokens"]
    assert laps == ["imports", prompt, *others, "all"]


def test_another_process_converts_the_demo_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def convert_demo(arguments: list[str], **how: bool | Path) -> Any:
        (Path(arguments[-1]) / "ours").mkdir(parents=True)
        return subprocess.CompletedProcess(arguments, 0)

    def convert_late(arguments: list[str], **how: bool | Path) -> Any:
        (folder / "theirs").mkdir(parents=True)
        return convert_demo(arguments)

    monkeypatch.setattr(subprocess, "run", convert_demo)
    folder = native_folder()
    shutil.rmtree(folder)
    monkeypatch.setattr(subprocess, "run", convert_late)
    assert native_folder() == folder
    assert [file.name for file in folder.iterdir()] == ["theirs"]
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]


def test_a_demo_that_cannot_be_converted_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, stderr="error: the disk is full\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **how: failed)
    with pytest.raises(OSError, match="demo checkpoint cannot be converted: error: the disk is"):
        native_folder()
    assert list((tmp_path / "qwen_jax").iterdir()) == []


def test_an_interrupt_lost_in_a_callback_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax has a callback of the garbage collector, where Python cannot raise."""

    def callback(phase: str, info: dict[str, int]) -> None:
        if lost:
            lost.pop()
            raise KeyboardInterrupt

    def work() -> None:
        lost.append(True)
        gc.collect()
        time.sleep(10)

    lost: list[bool] = []
    here(monkeypatch)
    gc.callbacks.append(callback)
    try:
        with pytest.raises(SystemExit) as caught:
            run(work)
    finally:
        gc.callbacks.remove(callback)
    assert caught.value.code == 130
