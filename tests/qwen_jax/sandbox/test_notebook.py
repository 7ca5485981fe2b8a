"""Cells of code, one after another, and what the last of them shows."""

from pathlib import Path

import pytest

from qwen_jax.sandbox import notebook
from qwen_jax.sandbox.notebook import observe


def test_what_a_cell_shows() -> None:
    cells = ["x = 2; print('unseen')", "import sys\nprint(x)\nprint('e', file=sys.stderr)\nx + 1"]
    assert observe(cells, 9) == (
        "stdout:\n\n```\n2\n\n```\n\nstderr:\n\n```\ne\n\n```\n\nexecute_result:\n\n```\n3\n```"
    )
    assert observe(["x = 1"], 9) == ""
    assert observe(["None"], 9) == ""
    assert observe(["def f(:"], 9).endswith("SyntaxError: invalid syntax\n```")


def test_an_error_is_that_of_its_line_and_what_came_before_stays() -> None:
    assert observe(["y = 1\n1 / 0", "print('on')\nz = y\nz.none"], 9) == (
        "stdout:\n\n```\non\n\n```\n\nerror:\n\n```\nTraceback (most recent call last):\n"
        '  File "cell 2", line 3, in <module>\n    z.none\n'
        "AttributeError: 'int' object has no attribute 'none'\n```"
    )


def test_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = "error:\n\n```\nTimeout. No response after 1 seconds.\n```"
    assert observe(["print('on')\nwhile True: pass"], 1) == f"stdout:\n\n```\non\n\n```\n\n{over}"
    monkeypatch.setattr(notebook, "_STARTS", 0.3)
    assert "died" in observe(["import signal\nsignal.alarm(0)\nwhile True: pass"], 1)
    assert "died" in observe(["import os\nos._exit(0)"], 1)


def test_much_text_is_cut() -> None:
    assert len(observe(["print('x' * 10**6)"], 9)) == notebook.SHOWN + 2


def test_files_are_read_and_ours_are_not_replaced(tmp_path: Path) -> None:
    for name in ("own.txt", "program.py", "printed"):
        (tmp_path / name).write_text("theirs")
    assert "theirs" in observe(["open('own.txt').read()"], 9, files=tmp_path)
    assert "theirs" not in observe(["open('program.py').read()"], 9, files=tmp_path)
    assert {file.read_text() for file in tmp_path.iterdir()} == {"theirs"}
