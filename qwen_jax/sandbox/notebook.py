"""Run Python cells one after another as a notebook does, in the child of `program`.

    observe(["x = 2", "print(x)\nx + 1"], 30)     # what the last of them shows

The cells before the last run again, unseen, so that what they set is there: nothing stays alive
between two calls.
"""

from collections.abc import Sequence
from pathlib import Path

from qwen_jax.sandbox.program import run

SHOWN = 20_000  # characters of what a cell shows
_DIED = "The process died, or gave no response after {} seconds."
_CHILD = Path(__file__).with_name("notebook_program.py")
_STARTS = 20  # seconds for what stands before the cells, and to end


def observe(cells: Sequence[str], seconds: int, before: str = "", files: Path | None = None) -> str:
    """What the last cell shows: blocks of what it printed, its value, its error.

    seconds: for all cells together. before: imports and the like, beside them. files: a folder
    whose files lie where the cells work.
    """
    arguments = (before, list(cells), seconds, SHOWN)
    program = f"{_CHILD.read_text('utf-8')}\nmain{arguments!r}\n"
    passed, shown = run(program, seconds + _STARTS, files)
    return shown if passed else f"error:\n\n```\n{_DIED.format(seconds)}\n```"
