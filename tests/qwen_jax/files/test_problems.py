"""Problems are counted, shown as far as anyone reads, and raised once."""

import pytest

from qwen_jax.files.problems import Problems, Wrong


def test_they_add_up() -> None:
    problems = Problems(map(str, range(15)))
    problems.join(Problems([str(n) for n in range(15, 30)], 40))
    assert problems.shown == [str(n) for n in range(20)]
    assert problems.count == 55
    with pytest.raises(ValueError) as caught:
        problems.stop("nothing works")
    heading, *lines, rest = str(caught.value).split("\n  ")
    assert (heading, lines, rest) == ("nothing works:", problems.shown, "and 35 more")


def test_none_raise_nothing() -> None:
    problems = Problems()
    assert not problems
    problems.stop("nothing works")


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (ValueError("no\n such"), ["here: no such"]),
        (OSError("no disk"), ["here: no disk"]),
        (RecursionError(), ["here: nested too deeply"]),
        (Wrong("a: bad", "b: worse"), ["here: a: bad", "here: b: worse"]),
    ],
)
def test_what_is_raised_becomes_lines(error: Exception, lines: list[str]) -> None:
    problems = Problems()
    with problems.catch("here"):
        raise error
    assert problems.shown == lines


def test_our_own_faults_are_not_the_users() -> None:
    with pytest.raises(KeyError), Problems().catch():
        raise KeyError("a")
