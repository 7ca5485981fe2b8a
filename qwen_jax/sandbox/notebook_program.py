"""The child's side of `notebook`, which puts a call of `main` behind this text."""

import ast
import io
import linecache
import signal
import sys
import traceback
from typing import Any


class _Stream(io.TextIOBase):
    """Keeps what is written to it among all that is shown, in order."""

    def __init__(self, kind: str, shown: list[tuple[str, str]]):
        self._kind, self._shown = kind, shown

    def write(self, text: str) -> int:
        self._shown.append((self._kind, text))
        return len(text)


def _show(code: str, name: str, scope: dict[str, Any], shown: list[tuple[str, str]]) -> None:
    """Run a cell: what it prints, the value of an expression at its end, figures or an error."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        tree = ast.parse(code, name)
        ends = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), scope)
        if isinstance(ends, ast.Expr):
            value = eval(compile(ast.Expression(ends.value), name, "eval"), scope)
            if value is not None:
                shown.append(("execute_result", repr(value)))
    except BaseException as error:
        if isinstance(error, TimeoutError) and str(error) == _OVER:
            raise
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next  # this function's own line
        shown.append(("error", "".join(traceback.format_exception(error)).rstrip()))
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        for number in pyplot.get_fignums():
            shown.append((f"figure {number}", ""))
        pyplot.close("all")


_OVER = "the time of the cells is over"


def _end(number: int, frame: object) -> None:
    raise TimeoutError(_OVER)


def _text(shown: list[tuple[str, str]], most: int) -> str:
    blocks: list[tuple[str, list[str]]] = []
    for kind, text in shown:
        if not blocks or blocks[-1][0] != kind:
            blocks.append((kind, []))
        blocks[-1][1].append(text)
    told = []
    for kind, texts in blocks:
        if kind.startswith("figure "):
            number = int(kind.split()[1])
            told.append(f"![fig-{number:03}](figure-{number}.png)")
        else:
            told.append(f"{kind}:\n\n```\n{''.join(texts)}\n```")
    text = "\n\n".join(told)
    return text if len(text) <= most else f"{text[:most]}\n…"


def main(before: str, cells: list[str], seconds: int, most: int) -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(before, "before", "exec"), scope)
    shown: list[tuple[str, str]] = []
    out, errors = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Stream("stdout", shown), _Stream("stderr", shown)
    signal.signal(signal.SIGALRM, _end)
    signal.alarm(seconds)
    try:
        for number, code in enumerate(cells, 1):
            shown.clear()
            _show(code, f"cell {number}", scope, shown)
    except TimeoutError:
        shown.append(("error", f"Timeout. No response after {seconds} seconds."))
    finally:
        signal.alarm(0)
        sys.stdout, sys.stderr = out, errors
    print(_text(shown, most), end="")
