"""The installed command: its words are the programs of `python -m`, called late."""

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_jax import cli
from qwen_jax.program import compiled, interruption, progress

ROOT = Path(__file__).parents[2]


def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `run` change nothing that stays."""
    for module, name in ((interruption, "watch"), (compiled, "keep"), (progress, "begin")):
        monkeypatch.setattr(module, name, lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def shell(*arguments: Any) -> tuple[int, str, str]:
    """Exit code and output of the command, in a process that could not import JAX."""
    code = "import sys; sys.modules['jax'] = None; from qwen_jax.cli import main; main()"
    line = [sys.executable, "-W", "error", "-c", code, *arguments]
    run = subprocess.run(line, cwd=ROOT, check=False, capture_output=True, text=True)
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize("word", "convert generate chat train serve bench demo".split())
def test_help_and_version_need_no_jax(word: str) -> None:
    code, out, error = shell(word, "--help")
    assert (code, error) == (0, "")
    assert "None" not in out
    assert shell(word, "--version") == shell("--version")


def test_help_lists_the_programs() -> None:
    code, out, error = shell("--help")
    assert (code, error) == (0, "")
    for word in "convert generate chat train serve bench evaluate plan profile warm demo".split():
        assert f"\n  {word} " in out
    assert shell() == (2, "", out)


def test_version() -> None:
    assert shell("--version") == (0, f"qwen_jax {importlib.metadata.version('qwen_jax')}\n", "")


def test_an_unknown_word() -> None:
    known = ", ".join(cli.PROGRAMS)
    told = f"error: there is no command trian; did you mean train? there are {known}\n"
    assert shell("trian", "--help") == (2, "", told)


def test_it_is_what_a_wheel_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["scripts"] == {"qwen-jax": "qwen_jax.cli:main"}
    installed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {program.module.split(".")[0] for program in cli.PROGRAMS.values()} == {*installed}


@pytest.mark.parametrize("word", cli.PROGRAMS)
def test_a_word_is_a_program(
    word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the help that `python -m` prints, under its own name."""
    here(monkeypatch)
    module, said = cli.load(word), []
    for call in (
        lambda: cli.main([word, "--help"]),
        lambda: module.command(["--help"], prog=f"qwen-jax {word}"),
    ):
        with pytest.raises(SystemExit) as caught:
            call()
        assert caught.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith(f"usage: qwen-jax {word} ")


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """fault(word): the line with which the command ends."""
    here(monkeypatch)

    def end(word: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main([word])
        return str(caught.value.code)

    return end


def test_another_package_of_the_same_name(
    fault: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = SimpleNamespace(origin=str(tmp_path / "train" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: other)
    said = fault("train")
    assert said.startswith(f"error: qwen-jax train needs the package train in {ROOT}, found it in ")
    assert str(tmp_path) in said
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "found it in nowhere" in fault("serve")


def test_a_program_without_its_extra(
    fault: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names what is missing and what to type; so does --help, which works."""
    extras = {"chat": "serve", "train": "train", "serve": "serve", "bench": "serve"}
    installed = importlib.metadata.version
    lost = {"httpx", "optax"}

    def version(name: str) -> str:
        if name in lost:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for word, extra in extras.items():
        package = "optax" if extra == "train" else "httpx"
        told = f"qwen-jax {word} needs {package}, which is not installed; "
        told += f'pip install "qwen_jax[{extra}]"'
        assert fault(word) == f"error: {told}"
        with pytest.raises(SystemExit) as caught:
            cli.main([word, "--help"])
        assert caught.value.code == 0
        assert told in " ".join(capsys.readouterr().out.split())


def test_an_error_that_was_a_ctrl_c(
    fault: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """C++ may make another error of the KeyboardInterrupt; a program may add what comes next."""

    def interrupted(word: str) -> None:
        raise AttributeError("a module that is imported half")

    monkeypatch.setattr(cli, "load", interrupted)
    monkeypatch.setattr(interruption, "asked", lambda: True)
    monkeypatch.setattr(interruption, "advice", "the same command goes on from here")
    assert fault("demo") == "130"
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"


def test_a_ctrl_c_before_it_is_watched_for(
    fault: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interruption, "watch", interrupted)
    assert fault("demo") == "130"
    assert capsys.readouterr().err == "interrupted\n"


def test_a_warning_is_a_line(
    fault: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(word: str) -> None:
        for _ in range(2):
            cli._warn(UserWarning("this may surprise"), UserWarning, "file.py", 1)
        cli._warn(DeprecationWarning("old"), DeprecationWarning, "file.py", 1)
        raise ValueError("wrong")

    monkeypatch.setattr(cli, "load", warned)
    assert fault("demo") == "error: wrong"
    assert capsys.readouterr().err == "warning: this may surprise\n"


def test_a_package_that_came_later_is_a_line(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkout that was updated and not installed again."""

    def lost(word: str) -> None:
        raise ModuleNotFoundError("No module named 'xxhash'", name="xxhash")

    monkeypatch.setattr(cli, "load", lost)
    assert "xxhash is not installed, and qwen_jax needs it; install qwen_jax again" in fault("demo")
