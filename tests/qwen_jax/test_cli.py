"""The installed command: its words are the programs of `python -m`, called late."""

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_jax import cli

ROOT = Path(__file__).parents[2]


def shell(*arguments: Any) -> tuple[int, str, str]:
    """Exit code and output of the command, in a process that could not import JAX."""
    code = "import sys; sys.modules['jax'] = None; from qwen_jax.cli import main; main()"
    line = [sys.executable, "-W", "error", "-c", code, *arguments]
    run = subprocess.run(line, cwd=ROOT, check=False, capture_output=True, text=True)
    return run.returncode, run.stdout, run.stderr


def test_help_lists_the_programs() -> None:
    code, out, error = shell("--help")
    assert (code, error) == (0, "")
    for word in "convert generate chat train serve bench evaluate plan profile demo".split():
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
    extras = {program.extra for program in cli.PROGRAMS.values()} - {None}
    assert extras <= project["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize("word", cli.PROGRAMS)
def test_a_word_is_a_program(
    word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the help that `python -m` prints, under its own name."""
    monkeypatch.setattr(cli, "_keep_compiled_code", lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
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
    monkeypatch.setattr(cli, "_keep_compiled_code", lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

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


def test_an_extra_that_is_not_installed(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(name: str) -> None:
        raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")

    monkeypatch.setattr(importlib, "import_module", lost)
    wanted = 'needs uvicorn, which is not installed; pip install "qwen_jax[serve]"'
    assert fault("serve") == f"error: qwen-jax serve {wanted}"


def test_a_ctrl_c_may_have_its_own_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_keep_compiled_code", lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def interrupted() -> None:
        raise KeyboardInterrupt("the same command goes on from here")

    with pytest.raises(SystemExit) as caught:
        cli.run(interrupted)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "the same command goes on from here\n"
