"""A command line read: groups, help, defaults."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from qwen_jax.program import arguments


@dataclasses.dataclass(frozen=True)
class Options:
    """Do a thing.

    And more of it.
    """

    what: str
    """What to do."""
    size: int | None = None
    """Its size; by default, as it comes."""
    kind: Literal["a", "b"] = "a"
    """Its kind."""
    files: tuple[Path, ...] = ()


def work(first: int = 1, second: float | None = None) -> tuple[int, float | None]:
    """Work.

    Args:
        first: Number of
            the first.
    """
    return first, second


GROUPS = {"thing": "size what"}


def told(*given: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        arguments.read(Options, "thing", given, GROUPS)
    output = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, " ".join((output.out + output.err).split())


def test_options() -> None:
    given = "--what x --kind b --files a b --size 3".split()
    made = arguments.read(Options, "thing", given, GROUPS)
    assert made == Options("x", 3, "b", (Path("a"), Path("b")))
    assert arguments.read(Options, "thing", ["--what", "x"], GROUPS) == Options("x")
    assert arguments.read(work, "work", ["--second", "2"]) == (1, 2.0)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = told("--help", capsys=capsys)
    assert code == 0
    assert "Do a thing." in text
    assert "And more" not in text
    thing = text[text.index("thing options") :]
    assert "--size INT Its size; by default, as it comes. " in thing
    assert thing.index("Its size") < thing.index("--what STR What to do. (required)")
    assert "Its kind. (default: a)" in text[: text.index("thing options")]
    assert "None" not in text


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for given, words in (
        (["--what", "x", "--sise", "3"], "--size"),
        (["--what", "x", "--size", "None"], "invalid literal for int"),
        ([], "--what"),
    ):
        code, text = told(*given, capsys=capsys)
        assert code == 2
        assert words in text


def test_a_model_is_a_word_where_it_is_no_option() -> None:
    def words(folder: str) -> str:
        """Work."""
        return folder

    assert arguments.read(words, "it", ["--folder", "demo"]) == "demo"
    with pytest.raises(ValueError, match="it has no --model: the model is its first word"):
        arguments.read(words, "it", ["--model", "demo"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert told("--version", capsys=capsys) == (0, arguments.version())


def test_missing() -> None:
    assert arguments.missing("serve", "it") == ""
    assert arguments.missing("nothing", "it") == ""
